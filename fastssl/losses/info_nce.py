"""InfoNCE of queries against keys: each query's positive is the key in its row, all other keys are its negatives."""

from __future__ import annotations

from torch import Tensor, nn

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
    """
    owner = "InfoNCE"
    _rows.pair(owner, ("queries", queries), ("keys", keys))
    queries, keys = _rows.unit(queries, normalized), _rows.unit(keys, normalized)
    if negatives is not None:
        negatives = _rows.unit(negatives, normalized)
    if symmetric:
        settings = dict(temperature=temperature, normalized=True, negatives=negatives, group=group, strategy=strategy)
        one_way, other_way = (info_nce_loss(a, b, **settings) for a, b in ((queries, keys), (keys, queries)))  # type: ignore[arg-type]
        return (one_way + other_way) / 2
    processes, strategy = _group.resolved(owner, group), _rows.strategy(owner, strategy)
    if processes is None:
        return ops.info_nce(queries, keys, temperature=temperature, negatives=negatives)
    _group.same_count(owner, queries, processes)
    if strategy == "gather":
        everyones, own = _group.gathered(keys, processes), _group.place(queries, processes)
        return ops.info_nce(queries, everyones, own, temperature=temperature, negatives=negatives)
    if negatives is not None:
        raise ValueError(f'{owner}: strategy="ring" takes no further negatives; gather the keys (strategy="gather")')
    _check.scale(owner, "temperature", temperature, queries, above_zero=True)
    scaled = _rows.widened(queries) / temperature
    keys = _rows.widened(keys)
    return (_ring.lse(scaled, keys, None, processes) - (scaled * keys).sum(1)).mean()


class InfoNCE(nn.Module):
    """InfoNCE of N queries against N keys (CPC, arXiv:1807.03748, eq. 4; MoCo v3, arXiv:2104.02057, algorithm 1).

    Memory grows with N D, not with N^2. Deterministic.

    Args:
        temperature: divides the cosine similarities; finite, > 0; or a tensor without dimensions, which may be learnt.
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
        super().__init__()
        self.temperature = (
            temperature if isinstance(temperature, Tensor) else _check.positive("InfoNCE", "temperature", temperature)
        )
        self.normalized, self.symmetric, self.group = normalized, symmetric, group
        self.strategy = _rows.strategy("InfoNCE", strategy)

    def forward(self, queries: Tensor, keys: Tensor, negatives: Tensor | None = None) -> Tensor:
        """queries, keys: (N, D), row i of both of one sample; negatives: (K, D) further candidates, without gradient.

        Returns the scalar mean loss in nats.
        """
        return info_nce_loss(
            queries,
            keys,
            temperature=self.temperature,
            normalized=self.normalized,
            negatives=negatives,
            symmetric=self.symmetric,
            group=self.group,
            strategy=self.strategy,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalized={self.normalized}, symmetric={self.symmetric}"
