"""info-nce-pytorch: ``from fastssl.compat.info_nce import InfoNCE, info_nce``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl import ops
from fastssl.losses import _rows
from fastssl.ops import _check
from fastssl.ops.info_nce import REDUCTIONS

NEGATIVE_MODES = {"unpaired": "MD", "paired": "NMD"}


class InfoNCE(nn.Module):
    """InfoNCE (arXiv:1807.03748, eq. 4) of rows that are normalised inside.

    Args:
        temperature: finite, > 0; or a tensor without dimensions, which may be learnt.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired" negatives (M, D) are those of all queries, "paired" ones (N, M, D) of one each.
    """

    def __init__(
        self, temperature: float | Tensor = 0.1, reduction: str = "mean", negative_mode: str = "unpaired"
    ) -> None:
        super().__init__()
        _check_words(reduction, negative_mode)
        self.temperature, self.reduction, self.negative_mode = temperature, reduction, negative_mode

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        """See ``info_nce``."""
        return info_nce(query, positive_key, negative_keys, self.temperature, self.reduction, self.negative_mode)


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
) -> Tensor:
    """The cross-entropy of each query's positive key against its negatives.

    Args:
        query, positive_key: (N, D), row i of both of one sample.
        negative_keys: (M, D), or (N, M, D) if paired; by default the other queries' positive keys. With unpaired ones
            and without any, memory grows with (N + M) D and not with N M.
        temperature, reduction, negative_mode: as of ``InfoNCE``.
    Returns:
        The loss in nats, in float32 (float64 for float64 inputs): a scalar, or (N) for "none".
    Raises:
        TypeError, ValueError: for other shapes, dtypes or words, or a temperature that is not finite and positive.
    """
    _check_words(reduction, negative_mode)
    _rows.pair("InfoNCE", ("query", query), ("positive_key", positive_key))
    if negative_keys is None:
        query, positive_key = _rows.unit(query, False), _rows.unit(positive_key, False)
        return ops.info_nce(query, positive_key, temperature=temperature, reduction=reduction)
    _check_negatives(negative_keys, query, negative_mode)
    _check.scale("InfoNCE", "temperature", temperature, query, above_zero=True)
    query, positive_key, negatives = (_rows.unit(_rows.widened(x), False) for x in (query, positive_key, negative_keys))
    scaled, negatives = query / temperature, negatives.to(query.dtype)
    if negative_mode == "unpaired":
        others = _rows.log_sum_exp(scaled, negatives)
    else:
        with _rows.without_autocast(scaled):
            others = torch.bmm(negatives, scaled[:, :, None]).squeeze(2).logsumexp(1)
    losses = _rows.log_one_plus_exp(others - (scaled * positive_key).sum(1))
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def _check_words(reduction: str, negative_mode: str) -> None:
    for name, value, known in (
        ("reduction", reduction, REDUCTIONS),
        ("negative_mode", negative_mode, tuple(NEGATIVE_MODES)),
    ):
        if value not in known:
            raise ValueError(f"InfoNCE: {name} must be one of {', '.join(known)}; got {value!r}")


def _check_negatives(negative_keys: Tensor, query: Tensor, negative_mode: str) -> None:
    owner = "InfoNCE"
    _check.float_tensor(owner, f"{negative_mode} negative_keys", negative_keys, NEGATIVE_MODES[negative_mode])
    _check.one_device(owner, ("query", query), ("negative_keys", negative_keys))
    if negative_keys.shape[-1] != query.shape[1] or (negative_mode == "paired" and len(negative_keys) != len(query)):
        raise ValueError(
            f"{owner}: {negative_mode} negative_keys ({', '.join(NEGATIVE_MODES[negative_mode])}) must go with query "
            f"(N, D); got {_check.shape(negative_keys)} and {_check.shape(query)}"
        )
    if negative_keys.numel() == 0:
        raise ValueError(f"{owner}: needs at least one negative key, or None; got {_check.shape(negative_keys)}")
