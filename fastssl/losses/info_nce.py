"""InfoNCE of queries against keys: each query's positive is the key in its row, all other keys are its negatives."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from fastssl import ops
from fastssl.losses import _group, _ring, _rows
from fastssl.losses._group import Group
from fastssl.ops import _check


def info_nce_loss(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor,
    normalized: bool = False,
    negatives: Tensor | None = None,
    symmetric: bool = False,
    group: Group = None,
    strategy: str = "gather",
) -> Tensor:
    """The mean over rows of ``-log(exp(s_ii) / sum_j exp(s_ij))``, ``s_ij = <q_i, k_j> / temperature``.

    CPC (arXiv:1807.03748, eq. 4). See ``InfoNCE`` for the arguments; ``fastssl.ops.info_nce`` computes it.

    Returns:
        The scalar in nats, in float32 (float64 for float64 rows).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
        ValueError: for other shapes, no sample or feature, two devices, a temperature that is not finite and positive,
            another strategy, or further negatives with "ring"; with a group on every process, naming the ranks, if one
            has such input or they differ in shapes or dtypes.
        RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
            supported.
    """
    owner = "InfoNCE"

    def numbers(queries: Tensor) -> None:
        _check.scale(owner, "temperature", temperature, queries, above_zero=True)
        if negatives is not None:
            _check_negatives(owner, negatives, queries)
            if group is not None and strategy == "ring":
                raise ValueError(
                    f'{owner}: strategy="ring" takes no further negatives; gather the keys (strategy="gather")'
                )

    queries, keys, processes = _rows.begun(
        owner,
        ("queries", queries),
        ("keys", keys),
        normalized=normalized,
        group=group,
        strategy=strategy,
        numbers=numbers,
        temperature=temperature,
        symmetric=symmetric,
    )
    if negatives is not None:
        negatives = _rows.unit(negatives.detach(), normalized)
    one_way = contrasted(queries, keys, temperature, negatives, processes, strategy)
    if not symmetric:
        return one_way
    return (one_way + contrasted(keys, queries, temperature, negatives, processes, strategy)) / 2


def _check_negatives(owner: str, negatives: Tensor, queries: Tensor) -> None:
    _check.float_tensor(owner, "negatives", negatives, "KD")
    if negatives.shape[1] != queries.shape[1]:
        raise ValueError(
            f"{owner}: queries (N, D) and negatives (K, D) must agree on D; got {_check.shape(queries)} and "
            f"{_check.shape(negatives)}"
        )
    _check.one_device(owner, ("queries", queries), ("negatives", negatives))


def contrasted(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor,
    negatives: Tensor | None,
    processes: dist.ProcessGroup | None,
    strategy: str,
) -> Tensor:
    """InfoNCE of rows as they are, checked before, against the keys of all processes."""
    if processes is None:
        return ops.info_nce(queries, keys, temperature=temperature, negatives=negatives)
    if strategy == "gather":
        everyones, own = _group.gathered(keys, processes), _group.place(queries, processes)
        return ops.info_nce(queries, everyones, own, temperature=temperature, negatives=negatives)
    scaled, keys = _rows.widened(queries) / temperature, _rows.widened(keys)
    return (_ring.lse(scaled, keys, None, processes) - (scaled * keys).sum(1)).mean()


class InfoNCE(_rows.OfRows):
    """InfoNCE of N queries against N keys (CPC, arXiv:1807.03748, eq. 4; MoCo v3, arXiv:2104.02057, algorithm 1).

    Memory grows with N D, not with N^2. Deterministic.

    Args:
        temperature: divides the cosine similarities; finite, > 0; or a tensor without dimensions, whose value is not
            checked. A parameter is this module's: the optimizer must have its ``parameters()`` too, and over several
            processes DistributedDataParallel must wrap it with the model, or the processes learn apart. One that is
            learnt as its logarithm goes to ``info_nce_loss(..., temperature=log.exp())``, anew for each call.
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        symmetric: also the keys against the queries; the mean of both.
        group: None for this process alone; "world" or a process group: the keys of all its processes are candidates,
            and the mean of the losses over the processes is the loss of the whole batch.
        strategy: "gather" the keys of all processes once, or pass them round a "ring": memory that does not grow with
            the number of processes, for sending the keys twice.
    Raises:
        ValueError: for a temperature that is not finite and positive, or another strategy.
    """

    def __init__(
        self,
        temperature: float | Tensor,
        *,
        normalized: bool = False,
        symmetric: bool = False,
        group: Group = None,
        strategy: str = "gather",
    ) -> None:
        super().__init__(normalized=normalized, group=group, strategy=strategy)
        self.temperature = (
            temperature if isinstance(temperature, Tensor) else _check.positive("InfoNCE", "temperature", temperature)
        )
        self.symmetric = symmetric

    def forward(self, queries: Tensor, keys: Tensor, negatives: Tensor | None = None) -> Tensor:
        """queries, keys: (N, D), row i of both of one sample; negatives: (K, D) further candidates, without gradient.

        Over a group, negatives are this process's alone: the loss is that of the whole batch if all have the same.
        Returns the scalar mean loss in nats. Raises what ``info_nce_loss`` does.
        """
        return info_nce_loss(
            queries,
            keys,
            temperature=self.temperature,
            negatives=negatives,
            symmetric=self.symmetric,
            **self.settings(),
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, {super().extra_repr()}, symmetric={self.symmetric}"
