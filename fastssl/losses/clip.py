"""The losses of image and text features: CLIP's, a softmax each way, and SigLIP's, a sigmoid of every pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl import ops
from fastssl.losses import _group, _ring, _rows
from fastssl.losses._group import Group
from fastssl.losses.info_nce import info_nce_loss


def clip_loss(
    a: Tensor,
    b: Tensor,
    *,
    logit_scale: float | Tensor,
    normalized: bool = False,
    group: Group = None,
    strategy: str = "gather",
) -> Tensor:
    """CLIP's loss (arXiv:2103.00020, figure 3): the mean of both directions' InfoNCE. See ``ClipLoss``."""
    _rows.pair("ClipLoss", ("a", a), ("b", b))
    a, b = _rows.unit(a, normalized), _rows.unit(b, normalized)
    if group is None:
        return ops.clip_loss(a, b, logit_scale=logit_scale)
    settings = dict(temperature=1 / logit_scale, normalized=True, symmetric=True, group=group, strategy=strategy)
    return info_nce_loss(a, b, **settings)  # type: ignore[arg-type]


class ClipLoss(nn.Module):
    """The mean of both directions' cross-entropies over pairs (CLIP, arXiv:2103.00020, figure 3).

    ``logit_scale``, a number or a tensor to be learnt (the paper's ``exp(t)``), is an argument of the call, as it is a
    parameter of the model. Memory grows with N D, not with N^2.

    Args:
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group, strategy: as of ``InfoNCE``.
    """

    def __init__(self, *, normalized: bool = False, group: Group = None, strategy: str = "gather") -> None:
        super().__init__()
        self.normalized, self.group, self.strategy = normalized, group, _rows.strategy("ClipLoss", strategy)

    def forward(self, a: Tensor, b: Tensor, logit_scale: float | Tensor) -> Tensor:
        """a, b: (N, D) features of N images and their texts. Returns the scalar mean loss in nats."""
        return clip_loss(
            a, b, logit_scale=logit_scale, normalized=self.normalized, group=self.group, strategy=self.strategy
        )

    def extra_repr(self) -> str:
        return f"normalized={self.normalized}"


def siglip_loss(
    a: Tensor,
    b: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    normalized: bool = False,
    group: Group = None,
    strategy: str = "gather",
) -> Tensor:
    """SigLIP's loss (arXiv:2303.15343, eq. 1). See ``SigLipLoss``."""
    owner = "SigLipLoss"
    _rows.pair(owner, ("a", a), ("b", b))
    a, b = _rows.unit(a, normalized), _rows.unit(b, normalized)
    processes, strategy = _group.resolved(owner, group), _rows.strategy(owner, strategy)
    if processes is None:
        return ops.siglip_loss(a, b, logit_scale=logit_scale, logit_bias=logit_bias)
    _group.same_count(owner, a, processes)
    # scale and bias as part of the rows: their gradients are then what the rows' pass on to them
    a, b = _rows.widened(a), _rows.widened(b)
    ones = a.new_ones(len(a), 1)
    a, b = torch.cat([a * logit_scale, ones * logit_bias], 1), torch.cat([b, ones], 1)
    if strategy == "ring":
        return _ring.total(a, b, _sigmoid_term, processes)
    own = torch.distributed.get_rank(processes)
    blocks = torch.split(_group.gathered(b, processes), len(b))
    return torch.stack([_sigmoid_term(a, block, i == own) for i, block in enumerate(blocks)]).sum()


def _sigmoid_term(a: Tensor, b: Tensor, own: bool) -> Tensor:
    """SigLIP's loss over one block of texts: of another process, none of them matches."""
    loss = ops.siglip_loss(a, b, logit_scale=1.0, logit_bias=0.0)
    # -log sigmoid(l) where a pair matches, -log sigmoid(-l) where not: they differ by l
    return loss if own else loss + (a * b).sum(1).mean()


class SigLipLoss(nn.Module):
    """Binary cross-entropy of every pair, matching or not (SigLIP, arXiv:2303.15343, eq. 1).

    ``logit_scale`` and ``logit_bias``, numbers or tensors to be learnt (the paper begins at 10 and -10), are arguments
    of the call, as they are parameters of the model. Memory grows with N D, not with N^2.

    Args:
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group, strategy: as of ``InfoNCE``.
    """

    def __init__(self, *, normalized: bool = False, group: Group = None, strategy: str = "gather") -> None:
        super().__init__()
        self.normalized, self.group, self.strategy = normalized, group, _rows.strategy("SigLipLoss", strategy)

    def forward(self, a: Tensor, b: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor) -> Tensor:
        """a, b: (N, D) features of N images and their texts. Returns the scalar loss in nats a sample."""
        return siglip_loss(
            a,
            b,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            normalized=self.normalized,
            group=self.group,
            strategy=self.strategy,
        )

    def extra_repr(self) -> str:
        return f"normalized={self.normalized}"
