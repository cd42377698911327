"""The losses of image and text features: CLIP's, a softmax each way, and SigLIP's, a sigmoid of every pair."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl import ops
from fastssl.losses import _group, _ring, _rows
from fastssl.losses._group import Group
from fastssl.losses.info_nce import contrasted
from fastssl.ops import _check


def clip_loss(
    a: Tensor,
    b: Tensor,
    *,
    logit_scale: float | Tensor,
    normalized: bool = False,
    group: Group = None,
    strategy: str = "gather",
) -> Tensor:
    """CLIP's loss (arXiv:2103.00020, figure 3): the mean of both directions' InfoNCE. See ``ClipLoss``.

    Args:
        a, b: (N, D) features of N images and their texts.
        logit_scale: finite; or a floating-point tensor without dimensions, which gets a gradient and whose value is not
            checked.
    Returns:
        The scalar in nats, in float32 (float64 for float64 rows).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one; or for
            a scale that is no number.
        ValueError: for other shapes, no sample or feature, two devices, a scale that is not finite, or another
            strategy; with a group on every process, naming the ranks, if one has such input or they differ in shapes or
            dtypes.
        RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
            supported.
    """
    owner = "ClipLoss"
    a, b, processes = _rows.begun(
        owner,
        ("a", a),
        ("b", b),
        normalized=normalized,
        group=group,
        strategy=strategy,
        numbers=lambda a: _check.scale(owner, "logit_scale", logit_scale, a),
        logit_scale=logit_scale,
    )
    if processes is None:
        return ops.clip_loss(a, b, logit_scale=logit_scale)
    a, b = _rows.widened(a), _rows.widened(b)
    # the scale is multiplied in, and no temperature: it may be 0, and its dtype too narrow for its inverse
    one_way, other_way = (contrasted(x * logit_scale, y, 1.0, None, processes, strategy) for x, y in ((a, b), (b, a)))
    return (one_way + other_way) / 2


class ClipLoss(_rows.OfRows):
    """The mean of both directions' cross-entropies over pairs (CLIP, arXiv:2103.00020, figure 3).

    ``logit_scale``, a number or a tensor to be learnt (the paper's ``exp(t)``), is an argument of the call, as it is a
    parameter of the model. Memory grows with N D, not with N^2.

    Args:
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group, strategy: as of ``InfoNCE``.
    Raises:
        ValueError: for another strategy.
    """

    def forward(self, a: Tensor, b: Tensor, logit_scale: float | Tensor) -> Tensor:
        """a, b: (N, D) features of N images and their texts. Returns the scalar mean loss in nats.

        Raises what ``clip_loss`` does.
        """
        return clip_loss(a, b, logit_scale=logit_scale, **self.settings())


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
    """SigLIP's loss (arXiv:2303.15343, eq. 1). See ``SigLipLoss``.

    Args:
        a, b: (N, D) features of N images and their texts.
        logit_scale, logit_bias: finite; or floating-point tensors without dimensions, which get gradients and whose
            values are not checked.
    Returns:
        The scalar in nats a sample, in float32 (float64 for float64 rows).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one; or for
            a scale or bias that is no number.
        ValueError: for other shapes, no sample or feature, two devices, a scale or bias that is not finite, or another
            strategy; with a group on every process, naming the ranks, if one has such input or they differ in shapes or
            dtypes.
        RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
            supported.
    """
    owner = "SigLipLoss"

    def numbers(a: Tensor) -> None:
        _check.scale(owner, "logit_scale", logit_scale, a)
        _check.scale(owner, "logit_bias", logit_bias, a)

    a, b, processes = _rows.begun(
        owner,
        ("a", a),
        ("b", b),
        normalized=normalized,
        group=group,
        strategy=strategy,
        numbers=numbers,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    if processes is None:
        return ops.siglip_loss(a, b, logit_scale=logit_scale, logit_bias=logit_bias)
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


class SigLipLoss(_rows.OfRows):
    """Binary cross-entropy of every pair, matching or not (SigLIP, arXiv:2303.15343, eq. 1).

    ``logit_scale`` and ``logit_bias``, numbers or tensors to be learnt (the paper begins at 10 and -10), are arguments
    of the call, as they are parameters of the model. Memory grows with N D, not with N^2.

    Args:
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group, strategy: as of ``InfoNCE``.
    Raises:
        ValueError: for another strategy.
    """

    def forward(self, a: Tensor, b: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor) -> Tensor:
        """a, b: (N, D) features of N images and their texts. Returns the scalar loss in nats a sample.

        Raises what ``siglip_loss`` does.
        """
        return siglip_loss(a, b, logit_scale=logit_scale, logit_bias=logit_bias, **self.settings())
