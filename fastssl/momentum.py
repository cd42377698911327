"""The moving average of a network's weights: MoCo's momentum encoder, the teacher of BYOL and DINO."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastssl import ops
from fastssl.ops import _check

NARROW = (torch.bfloat16, torch.float16)


def cosine(start: float, end: float, steps: int) -> Callable[[int], float]:
    """A momentum that goes from ``start`` to ``end`` over ``steps`` updates along half a cosine, as BYOL's does.

    BYOL (arXiv:2006.07733, section 3.2): ``end - (end - start) (cos(pi k / steps) + 1) / 2``.

    Raises:
        ValueError: for a momentum outside [0, 1], or fewer than one step.
    """
    start, end = _check.momentum("cosine", start), _check.momentum("cosine", end)
    if _check.whole("cosine", "steps", steps) < 1:
        raise ValueError(f"cosine: steps must be at least 1; got {steps}")
    return functools.partial(_cosine, start, end, steps)  # and no lambda, which a process could not be given


def _cosine(start: float, end: float, steps: int, update: int) -> float:
    return end - (end - start) * (math.cos(math.pi * min(update / steps, 1.0)) + 1) / 2


class EMA(nn.Module):
    """A copy of a network whose weights follow the network's: ``theirs = m theirs + (1 - m) the network's``.

    MoCo (arXiv:1911.05722, eq. 2). All parameters and buffers are updated in one launch. A weight in bfloat16 or
    float16 never moves at momentum 0.999, so it has a shadow in float32, which is what is averaged and saved, and of
    which the copy's weight is rounded. Buffers that are no floating-point numbers are copied.

    Call ``update`` once an optimizer step, after it. The copy takes no gradient, and is called as the network is.

    Args:
        model: the network; it is copied, and not kept.
        momentum: in [0, 1]; or a function of the number of updates made so far (see ``cosine``).
    Raises:
        ValueError: for a momentum outside [0, 1].
    """

    def __init__(self, model: nn.Module, momentum: float | Callable[[int], float]) -> None:
        super().__init__()
        self.momentum = momentum if callable(momentum) else _check.momentum("EMA", momentum)
        self.updates = 0
        # what a module computes of its weights and keeps (weight_norm does) has a history, which is not copied
        computed = {
            id(x): x.detach().clone()
            for part in model.modules()
            for x in vars(part).values()
            if isinstance(x, Tensor) and not x.is_leaf
        }
        self.module = copy.deepcopy(model, computed).requires_grad_(False)
        self.shadows = nn.ParameterList()
        self._renew_shadows()
        self.register_load_state_dict_post_hook(lambda ema, _: ema._remember())  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's result."""
        return self.module(*args, **kwargs)

    def current_momentum(self) -> float:
        """What the next ``update`` takes."""
        return self.momentum(self.updates) if callable(self.momentum) else self.momentum

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the copy towards ``model``.

        Raises:
            ValueError: if ``model`` has not the parameters and buffers of the one that was copied.
        """
        targets, sources = _tensors(self.module), _tensors(model)
        if [x.shape for x in targets] != [x.shape for x in sources]:
            raise ValueError(
                f"EMA: the model's parameters and buffers are not those of the one that was copied; got {len(sources)} "
                f"tensors for {len(targets)}, or other shapes"
            )
        pairs = list(zip(targets, sources, strict=True))
        narrow = [pair for pair in pairs if pair[0].dtype in NARROW]
        if self._shadowed != _places([t for t, _ in narrow]):
            self._renew_shadows()
        wide = [pair for pair in pairs if pair[0].dtype not in NARROW]
        momentum = self.current_momentum()
        ops.ema_update_([t for t, _ in wide], [s for _, s in wide], momentum)
        ops.ema_update_(list(self.shadows), [s for _, s in narrow], momentum, copies=[t for t, _ in narrow])
        self.updates += 1
        self._remember()

    @torch.no_grad()
    def _renew_shadows(self) -> None:
        """Shadows of the weights as they are: at first, and where the copy was changed since the last update."""
        narrow = [x for x in _tensors(self.module) if x.dtype in NARROW]
        self.shadows = nn.ParameterList([nn.Parameter(x.float(), requires_grad=False) for x in narrow])
        self._remember()

    def _remember(self) -> None:
        self._shadowed = _places([x for x in _tensors(self.module) if x.dtype in NARROW])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves or casts the copy; its shadows follow its weights, but stay in float32."""
        before = [x.detach().clone() for x in self.shadows]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        narrow = [x for x in _tensors(self.module) if x.dtype in NARROW]
        if len(narrow) != len(before):
            self._renew_shadows()
        for shadow, kept, weight in zip(self.shadows, before, narrow, strict=False):
            shadow.data = kept.to(weight.device)
        self._remember()
        return self

    def get_extra_state(self) -> dict[str, int]:
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.updates = state["updates"]


def _places(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """What changes with a tensor's memory, and with what is written there."""
    return [(x.data_ptr(), x._version) for x in tensors]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers; of tied ones, one."""
    return [*model.parameters(), *model.buffers()]
