"""The k largest of each row, with ties decided: what the ops that seek neighbours share."""

from __future__ import annotations

from torch import Tensor

_TRITON_ROWS, _TRITON_K = (1 << 31) - (1 << 16), 1 << 22  # the kernels count rows, and a block's candidates, in 32 bits


def triton_unsupported(queries: int, rows: int, k: int) -> str | None:
    """Why the Triton kernels cannot seek k neighbours of so many queries among so many rows."""
    if queries > _TRITON_ROWS:
        return f"it takes at most {_TRITON_ROWS} queries, got {queries}"
    if rows > _TRITON_ROWS or k > _TRITON_K:
        return f"it seeks at most {_TRITON_K} neighbours among {_TRITON_ROWS} rows, got {k} among {rows}"
    return None


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, largest first, of equal ones the lowest column first.

    x: (N, M), k <= M. Returns two (N, k) tensors. ``topk`` alone leaves open which of the equal ones it takes.
    """
    values, columns = x.topk(k, dim=1)
    border = values[:, -1:]
    tied = ((x >= border).sum(dim=1) > k).nonzero().squeeze(1)
    if len(tied):
        rows = x[tied]
        above, equal = rows > border[tied], rows == border[tied]
        wanted = above | (equal & (equal.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
        columns[tied] = wanted.nonzero()[:, 1].view(-1, k)
    columns = columns.sort(dim=1).values
    values, order = x.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)
