"""A network that learns to tell images from imitations while another learns to make them (arXiv:1406.2661)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BETAS = (0.5, 0.999)  # DCGAN's (arXiv:1511.06434, section 4)


class Adversary(nn.Module):
    """A discriminator with an optimizer of its own, Adam, so that both are trained in turns.

    The weights of the discriminator ask for no gradient, and so are left alone by the optimizer of whoever is judged;
    only :meth:`step` moves them. A state dict holds Adam's state too, and training goes on from there to the bit.

    Args:
        judge: images to (N,) logits, positive for those that look real.
        lr: Adam's learning rate, > 0.
    Raises:
        ValueError: for another rate.
    """

    def __init__(self, judge: nn.Module, lr: float) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"the learning rate of an adversary must be above 0; got {lr}")
        self.judge, self.lr = judge.requires_grad_(False), lr
        self.steps = 0
        for i, weight in enumerate(judge.parameters()):
            self.register_buffer(f"mean_{i}", torch.zeros_like(weight))
            self.register_buffer(f"square_{i}", torch.zeros_like(weight))

    def forward(self, fakes: Tensor) -> tuple[Tensor, Tensor]:
        """What ``fakes`` cost whoever made them, -log D(fake), a mean; and the share of them taken for real."""
        logits = self.judge(fakes)
        return _cross_entropy(logits, 1.0), (logits.detach() > 0).float().mean()

    def step(self, real: Tensor, fakes: Tensor) -> Tensor:
        """One step towards telling ``real`` from ``fakes``, which get no gradient.

        Returns:
            The loss before it, -log D(real) - log(1 - D(fake)), a scalar.
        """
        weights = list(self.judge.parameters())
        self.judge.requires_grad_(True)
        try:
            with torch.enable_grad():
                loss = _cross_entropy(self.judge(real.detach()), 1.0) + _cross_entropy(self.judge(fakes.detach()), 0.0)
                gradients = torch.autograd.grad(loss, weights)
        finally:
            self.judge.requires_grad_(False)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        self._optimizer(weights).step()
        for weight in weights:
            weight.grad = None
        return loss.detach()

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]

    def _optimizer(self, weights: list[nn.Parameter]) -> torch.optim.Adam:
        """Adam upon the buffers; made anew each time, for they are other tensors after ``.to`` or a copy."""
        self.steps += 1
        optimizer = torch.optim.Adam(weights, lr=self.lr, betas=_BETAS)
        for i, weight in enumerate(weights):
            optimizer.state[weight] = {
                "step": torch.tensor(self.steps - 1.0),  # which Adam counts by itself, for each weight
                "exp_avg": getattr(self, f"mean_{i}"),
                "exp_avg_sq": getattr(self, f"square_{i}"),
            }
        return optimizer


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, target, dtype=torch.float32))
