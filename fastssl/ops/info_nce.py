"""InfoNCE of queries against keys and further negatives; the N x (M + K) logits are never stored.

With P the softmax of each row over its columns and T the targets, each row's gradient to its query is
(P - T) columns / t, which the pass that finds the log-sum-exps finds as well. The backward multiplies it by what comes
from above; the keys' gradient, (P - T)^T queries / t, recomputes the similarities from what the forward keeps of each
row: its maximum, the log of what is left of its sum, and 1 - P(target), (3, N).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, triton, triton_cuda, triton_rows
from fastssl.ops._crossover import crossover, storable

_OP = "info_nce"
REDUCTIONS = ("mean", "sum", "none")


def info_nce(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float | Tensor,
    exclude: Tensor | None = None,
    negatives: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of queries against keys (InfoNCE: CPC, arXiv:1807.03748, eq. 4; MoCo v3, arXiv:2104.02057).

    For row i, ``-log(exp(s_it) / sum_j exp(s_ij))`` where ``s_ij = <queries_i, keys_j> / temperature``, t is the row's
    target, and j goes over all keys but the excluded one, and over the negatives. Rows are taken as they are: normalise
    them first. Memory beyond the inputs and their gradients grows with (N + M) D, not with N M. Deterministic, and by
    our kernels the same bits for any number of threads; on a CPU, where plain torch measured faster, at most 2^18 pairs
    or N <= D, it serves the call. Under autocast queries and keys, unless float64, are cast to float32, as torch does
    for losses; negatives are read as they are, and widened.

    Args:
        queries: (N, D) features; float32, bfloat16, float16 or float64. Sums are in float32, or float64.
        keys: (M, D) features; dtype and device of ``queries``.
        targets: (N) int64, each query's positive among the keys, in [0, M); by default 0, 1, ..., which needs N <= M.
        temperature: finite, > 0; or a floating-point tensor without dimensions, which receives a gradient and whose
            value is not checked.
        exclude: (N) int64, one column of the keys for each row to leave out (its own, say), in [0, M), not its target.
        negatives: (K, D) further columns for all rows, K >= 0, of any of these dtypes; they receive no gradient.
        reduction: "mean", "sum" or "none".
        backend: the backend that must serve the call; by default one that can (see ``fastssl.ops.explain``).
    Returns:
        The loss in nats, in float32 (float64 for float64 inputs): a scalar, or (N) for "none".
    Raises:
        TypeError: for a dtype that is not one of the above, or queries and keys of two dtypes.
        ValueError: for other shapes, no query, key or feature, two devices, a temperature that is not finite and
            positive, targets or excluded columns outside [0, M), a row whose target is excluded, or another reduction.
            What targets and excluded columns hold is not checked by the Triton kernels, which would wait for the GPU:
            there such a row's loss is NaN.
        RuntimeError: if ``backend`` cannot serve the call, or on a second derivative, which is not supported.
    """
    _check_rows(queries, keys, negatives)
    scale = _check.scale(_OP, "temperature", temperature, queries, above_zero=True)
    if reduction not in REDUCTIONS:
        raise ValueError(f"{_OP}: reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    n, m = len(queries), len(keys)
    if targets is None and n > m:
        raise ValueError(f"{_OP}: needs targets where queries are more than keys; got {n} and {m}")
    for name, columns in (("targets", targets), ("exclude", exclude)):
        if columns is not None:
            _check.index_tensor(_OP, name, columns, n, queries.device)
    queries, keys = _check.as_autocast_casts(queries), _check.as_autocast_casts(keys)
    _check.alike(_OP, ("queries", queries), ("keys", keys))
    if isinstance(scale, Tensor):  # the temperature's gradient is then what the quotient's queries pass on to it
        queries, scale = queries.to(_native.accumulator(queries.dtype)) / scale, 1.0
    for_queries = queries.requires_grad and torch.is_grad_enabled()
    loss: Tensor = _forward.call(queries, keys, targets, exclude, negatives, scale, reduction, for_queries, backend)[0]
    return loss


def _check_rows(queries: Tensor, keys: Tensor, negatives: Tensor | None) -> None:
    _check.float_tensor(_OP, "queries", queries, "ND")
    others = [("keys", keys, "MD")] if negatives is None else [("keys", keys, "MD"), ("negatives", negatives, "KD")]
    for name, rows, dims in others:
        _check.float_tensor(_OP, name, rows, dims)
        if rows.shape[1] != queries.shape[1]:
            raise ValueError(
                f"{_OP}: queries (N, D) and {name} ({', '.join(dims)}) must agree on D;"
                f" got {_check.shape(queries)} and {_check.shape(rows)}"
            )
        _check.one_device(_OP, ("queries", queries), (name, rows))
    if queries.numel() == 0 or keys.numel() == 0:
        raise ValueError(
            f"{_OP}: needs at least one query, key and feature; got {_check.shape(queries)} and {_check.shape(keys)}"
        )


def reference(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float | Tensor,
    exclude: Tensor | None = None,
    negatives: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The formula in plain torch: cross-entropy of each row of logits against its target."""
    logits = _logits(queries, keys, exclude, negatives, temperature)
    return torch.nn.functional.cross_entropy(logits, _targets(queries, targets), reduction=reduction)


def _logits(
    queries: Tensor, keys: Tensor, exclude: Tensor | None, negatives: Tensor | None, temperature: float | Tensor
) -> Tensor:
    """Scaled similarities with the keys, the excluded at minus infinity, and with the negatives."""
    logits = queries @ keys.T / temperature
    if exclude is not None:
        logits = logits.scatter(1, exclude[:, None], float("-inf"))
    if negatives is not None:
        logits = torch.cat([logits, queries @ negatives.detach().to(queries.dtype).T / temperature], 1)
    return logits


def _targets(queries: Tensor, targets: Tensor | None) -> Tensor:
    return torch.arange(len(queries), device=queries.device) if targets is None else targets


def _check_columns(targets: Tensor | None, exclude: Tensor | None, queries: Tensor, m: int) -> None:
    for name, columns in (("targets", targets), ("exclude", exclude)):
        if columns is not None:
            _check.in_range(_OP, name, columns, m)
    if exclude is not None:
        both = (_targets(queries, targets) == exclude).nonzero()
        if len(both):
            raise ValueError(
                f"{_OP}: exclude must not name a row's target; row {int(both[0])} has target and excluded "
                f"column {int(exclude[both[0]])}"
            )


_Columns = tuple[Tensor | None, Tensor | None]


def _reference_forward(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    negatives: Tensor | None,
    temperature: float,
    reduction: str,
    for_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_columns(targets, exclude, queries, len(keys))
    dtype = _native.accumulator(queries.dtype)
    queries, keys, columns = queries.to(dtype), keys.to(dtype), _targets(queries, targets)[:, None]
    with torch.autocast(queries.device.type, enabled=False):
        logits = _logits(queries, keys, exclude, negatives, temperature)
        loss = torch.nn.functional.cross_entropy(logits, columns[:, 0], reduction=reduction)
        maximum = logits.amax(1)
        others = logits.softmax(1).scatter(1, columns, 0.0)
        share = others.sum(1)
        statistics = torch.stack([maximum, (logits - maximum[:, None]).exp().sum(1).log(), share])
        if not for_queries:
            return loss, statistics, queries.new_empty((0, queries.shape[1]))
        rows = keys if negatives is None else torch.cat([keys, negatives.to(dtype)])
        return loss, statistics, (others @ rows - share[:, None] * keys[columns[:, 0]]) / temperature


def _reference_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    statistics: Tensor,
    direction: Tensor,
    temperature: float,
    for_queries: bool,
    for_keys: bool,
) -> tuple[Tensor, Tensor]:
    grad_queries, grad_keys = queries.new_empty((0, queries.shape[1])), keys.new_empty((0, keys.shape[1]))
    if for_queries:
        grad_queries = (grad[:, None] * direction).to(queries.dtype)
    if for_keys:
        with torch.autocast(queries.device.type, enabled=False):
            rows, columns = queries.to(grad.dtype), _targets(queries, targets)[:, None]
            maximum, log_total, share = (x[:, None] for x in statistics)
            logits = _logits(rows, keys.to(grad.dtype), exclude, None, temperature)
            weights = (logits - maximum - log_total).exp().scatter(1, columns, -share) * grad[:, None]
            grad_keys = (weights.T @ rows / temperature).to(keys.dtype)
    return grad_queries, grad_keys


def _fake_forward(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    negatives: Tensor | None,
    temperature: float,
    reduction: str,
    for_queries: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = queries.shape
    shapes = ((n,) if reduction == "none" else (), (3, n), (n if for_queries else 0, d))
    loss, statistics, direction = (
        queries.new_empty(shape, dtype=_native.accumulator(queries.dtype)) for shape in shapes
    )
    return loss, statistics, direction


def _fake_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    statistics: Tensor,
    direction: Tensor,
    temperature: float,
    for_queries: bool,
    for_keys: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    (n, d), m = queries.shape, keys.shape[0]
    return queries.new_empty((n if for_queries else 0, d)), keys.new_empty((m if for_keys else 0, d))


def _weight(reduction: str, n: int) -> float:
    """What each row's loss counts for in a scalar; 0 where there is none."""
    return {"mean": 1.0 / n, "sum": 1.0, "none": 0.0}[reduction]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _cpu_forward(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    negatives: Tensor | None,
    temperature: float,
    reduction: str,
    for_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_columns(targets, exclude, queries, len(keys))
    queries, keys = queries.contiguous(), keys.contiguous()
    targets, exclude, negatives = _contiguous(targets), _contiguous(exclude), _contiguous(negatives)
    out = _fake_forward(queries, keys, targets, exclude, negatives, temperature, reduction, for_queries, None)
    n, d = queries.shape
    _native.cpu.info_nce_forward(
        *(_address(tensor) for tensor in (queries, keys, negatives, targets, exclude)),
        n,
        len(keys),
        0 if negatives is None else len(negatives),
        d,
        *(_native.DTYPES[rows.dtype] for rows in (queries, keys, keys if negatives is None else negatives)),
        temperature,
        _weight(reduction, n),
        *(tensor.data_ptr() for tensor in out),  # 0, for not wanted, where the direction is empty
        _native.threads(),
    )
    return out


def _cpu_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    statistics: Tensor,
    direction: Tensor,
    temperature: float,
    for_queries: bool,
    for_keys: bool,
) -> tuple[Tensor, Tensor]:
    grad, queries, keys = grad.contiguous(), queries.contiguous(), keys.contiguous()
    targets, exclude = _contiguous(targets), _contiguous(exclude)
    statistics, direction = statistics.contiguous(), direction.contiguous()
    out = _fake_backward(
        grad, queries, keys, targets, exclude, statistics, direction, temperature, for_queries, for_keys, None
    )
    _native.cpu.info_nce_backward(
        *(_address(tensor) for tensor in (grad, queries, keys, targets, exclude, statistics, direction)),
        len(queries),
        *keys.shape,
        *(_native.DTYPES[rows.dtype] for rows in (queries, keys)),
        temperature,
        *(tensor.data_ptr() for tensor in out),
        _native.threads(),
    )
    return out


def _cpu_unsupported(queries: Tensor, keys: Tensor, *others: Tensor | None) -> str | None:
    return native_cpu(queries, keys, *(tensor for tensor in others if tensor is not None))


def _triton_unsupported(queries: Tensor, keys: Tensor, *others: Tensor | None) -> str | None:
    return triton_rows(queries, keys) or triton_cuda(queries, *(tensor for tensor in others if tensor is not None))


def _example(device: torch.device, n: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 4, device=device), dim=1)


def _example_columns(device: torch.device) -> _Columns:
    return torch.tensor([2, 0, 4], device=device), torch.tensor([0, 1, 2], device=device)


def _sizes(queries: Tensor, keys: Tensor) -> dict[str, int] | None:
    """What the choice of the reference looks at."""
    pairs, d = queries.shape[0] * keys.shape[0], queries.shape[1]
    return {"pairs": pairs, "d": d} if storable(pairs, keys.numel()) else None


_forward = Op(
    f"{_OP}(Tensor queries, Tensor keys, Tensor? targets, Tensor? exclude, Tensor? negatives, float temperature,"
    " str reduction, bool for_queries, str? backend) -> (Tensor, Tensor, Tensor)",
    {
        "triton": Implementation(
            triton(_OP, "forward"),
            lambda *call: _triton_unsupported(*call[:5]),
            crossover(_OP, lambda queries, keys, *_: _sizes(queries, keys), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_forward,
            lambda *call: _cpu_unsupported(*call[:5]),
            crossover(_OP, lambda queries, keys, *_: _sizes(queries, keys)),
        ),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (
        _example(device, 3),
        _example(device, 5),
        *_example_columns(device),
        _example(device, 2),
        0.5,
        "mean",
        True,
    ),
)
_backward = Op(
    f"{_OP}_backward(Tensor grad, Tensor queries, Tensor keys, Tensor? targets, Tensor? exclude, Tensor statistics,"
    " Tensor direction, float temperature, bool for_queries, bool for_keys, str? backend) -> (Tensor, Tensor)",
    {
        "triton": Implementation(
            triton(_OP, "backward"),
            lambda grad, *call: _triton_unsupported(*call[:4]),
            crossover(_OP, lambda grad, queries, keys, *_: _sizes(queries, keys), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_backward,
            lambda grad, *call: _cpu_unsupported(*call[:4]),
            crossover(_OP, lambda grad, queries, keys, *_: _sizes(queries, keys)),
        ),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (
        torch.ones(3, device=device),
        _example(device, 3),
        _example(device, 5),
        *_example_columns(device),
        torch.ones((3, 3), device=device),
        _example(device, 3),
        0.5,
        True,
        True,
    ),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, keys, targets, exclude, _, ctx.temperature, ctx.reduction, ctx.for_queries, ctx.backend = inputs
    _, statistics, direction = output
    ctx.save_for_backward(queries, keys, targets, exclude, statistics, direction)
    ctx.mark_non_differentiable(statistics, direction)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    n = len(ctx.saved_tensors[0])
    rows = grad if ctx.reduction == "none" else (grad * _weight(ctx.reduction, n)).expand(n)
    wanted = ctx.for_queries and ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    grads = _backward.call(rows, *ctx.saved_tensors, ctx.temperature, *wanted, ctx.backend)
    return *(part if want else None for part, want in zip(grads, wanted, strict=True)), *(None,) * 7


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(f"{_OP}: second derivatives are not supported")


torch.library.register_autograd(f"fastssl::{_OP}", _differentiate, setup_context=_setup_context)
torch.library.register_autograd(f"fastssl::{_OP}_backward", _refuse_second_derivative)
