"""NT-Xent, the loss of SimCLR, on features that need not be normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl import ops
from fastssl.losses import _group, _ring, _rows
from fastssl.losses._group import Group
from fastssl.ops._check import positive


def nt_xent_loss(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float,
    normalized: bool = False,
    group: Group = None,
    strategy: str = "gather",
) -> Tensor:
    """SimCLR's loss of two views (arXiv:2002.05709, eq. 1). See ``NTXent`` for the arguments.

    Returns:
        The scalar in nats, in float32 (float64 for float64 rows).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
        ValueError: for other shapes, no sample or feature, two devices, a temperature that is not finite and positive,
            or another strategy; with a group on every process, naming the ranks, if one has such input or they differ
            in shapes or dtypes.
        RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
            supported.
    """
    owner = "NTXent"
    z0, z1, processes = _rows.begun(
        owner,
        ("z0", z0),
        ("z1", z1),
        normalized=normalized,
        group=group,
        strategy=strategy,
        numbers=lambda _: positive(owner, "temperature", temperature),
        temperature=temperature,
    )
    if processes is None:
        return ops.nt_xent(z0, z1, temperature=temperature)
    anchors, n = torch.cat([z0, z1]), len(z0)
    if strategy == "gather":
        everyones, offset = _group.gathered(anchors, processes), _group.place(anchors, processes)
        return ops.info_nce(anchors, everyones, offset.roll(n), temperature=temperature, exclude=offset)
    anchors = _rows.widened(anchors)
    scaled, itself = anchors / temperature, torch.arange(2 * n, device=z0.device)
    return (_ring.lse(scaled, anchors, itself, processes) - (scaled * anchors.roll(n, 0)).sum(1)).mean()


class NTXent(_rows.OfRows):
    """Normalised temperature-scaled cross-entropy of two views (SimCLR, arXiv:2002.05709, eq. 1).

    Memory grows with N D, not with N^2. Deterministic. See ``fastssl.ops.nt_xent`` for the formula.

    Args:
        temperature: divides the cosine similarities; finite, > 0. The paper uses 0.1 on ImageNet and 0.5 on CIFAR-10.
            It is a number: for one that is learnt, divide unit rows by its root, and give 1 and ``normalized=True``.
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group: None for this process alone; "world" or a process group: the rows of all its processes are negatives,
            and the mean of the losses over the processes is the loss of the whole batch.
        strategy: "gather" the rows of all processes once, or pass them round a "ring": memory that does not grow with
            the number of processes, for sending the rows twice.
    Raises:
        ValueError: if the temperature is not finite and positive, or for another strategy.
    """

    def __init__(
        self, temperature: float, *, normalized: bool = False, group: Group = None, strategy: str = "gather"
    ) -> None:
        super().__init__(normalized=normalized, group=group, strategy=strategy)
        self.temperature = positive("NTXent", "temperature", temperature)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1: (N, D) features of two views of the same N samples. Returns the scalar mean loss in nats.

        Raises what ``nt_xent_loss`` does.
        """
        return nt_xent_loss(z0, z1, temperature=self.temperature, **self.settings())

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, {super().extra_repr()}"
