"""Exponential moving average of lists of tensors, in place, in one launch."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock

import torch
from torch import Tensor

from fastssl.ops import _check, _inplace, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda

_OP = "ema_update_"


def ema_update_(
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    momentum: float,
    *,
    copies: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> None:
    """``target = momentum * target + (1 - momentum) * source``, for all pairs of two lists, in place.

    The momentum encoder of MoCo (arXiv:1911.05722, eq. 2) and the teacher of DINO. Computed in float32 (float64 for
    float64 targets) whatever is stored, for a bfloat16 weight never moves at momentum 0.999: keep the targets in
    float32. Integer and bool tensors (buffers such as ``num_batches_tracked``) are copied. No gradient is recorded.

    On a GPU no call waits for the device: the first one on a list of tensors copies a table of their addresses there,
    out of pinned memory, and later ones on the same tensors find it, on any stream. A CUDA graph can capture these
    later calls and not the first, which raises there, for CUDA pins no memory during a capture and torch copies from
    no other: call it once before, as torch asks for all that is captured.

    Args:
        targets: tensors of any shape, updated in place; float32, bfloat16, float16, float64, integer or bool.
        sources: as many tensors, each with the shape and device of its target; a floating-point source may have
            another floating-point dtype than its target, any other has the same dtype.
        momentum: in [0, 1]; 1 keeps the floating-point targets and 0 copies the sources, whatever the others hold.
        copies: as many tensors, or None; each receives its updated target, rounded to its own floating-point dtype.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Raises:
        TypeError: for dtypes that cannot be paired.
        ValueError: naming the position and the shapes, for lists, shapes or devices that disagree, a tensor whose
            elements overlap in memory (an expanded one), tensors that share memory (tied weights given twice), or a
            momentum outside [0, 1].
        RuntimeError: if ``backend`` cannot serve the call, or a CUDA graph would capture the first one of them.
    """
    momentum = _check.momentum(_OP, momentum)
    targets, sources = _listed("targets", targets), _listed("sources", sources)
    copies = [] if copies is None else _listed("copies", copies)
    _check_lists(targets, sources, copies)
    if targets:
        with torch.no_grad():
            _ema_update.call(targets, sources, momentum, copies, backend)


def _listed(name: str, tensors: object) -> list[Tensor]:
    if not isinstance(tensors, Iterable) or isinstance(tensors, Tensor):
        raise TypeError(f"{_OP}: {name} must be a list of tensors; got {type(tensors).__name__}")
    return list(tensors)


def _check_lists(targets: list[Tensor], sources: list[Tensor], copies: list[Tensor]) -> None:
    if len(targets) != len(sources):
        raise ValueError(f"{_OP}: targets and sources must be as many; got {len(targets)} and {len(sources)}")
    if copies and len(copies) != len(targets):
        raise ValueError(f"{_OP}: copies must be as many as targets, or None; got {len(copies)} and {len(targets)}")
    if not _plainly_alike(targets, sources):
        _check_sources(targets, sources)
    for i, (target, copy) in enumerate(zip(targets, copies, strict=True) if copies else ()):
        _check_pair(f"target {i}", target, f"copy {i}", copy)
        if target.dtype != copy.dtype and not (target.dtype.is_floating_point and copy.dtype.is_floating_point):
            raise TypeError(f"{_OP}: target {i} is {target.dtype} and copy {i} is {copy.dtype}")


def _check_sources(targets: list[Tensor], sources: list[Tensor]) -> None:
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        _check_pair(f"target {i}", target, f"source {i}", source)
        if target.dtype.is_floating_point != source.dtype.is_floating_point or (
            target.dtype != source.dtype and not target.dtype.is_floating_point
        ):
            raise TypeError(f"{_OP}: target {i} is {target.dtype} and source {i} is {source.dtype}")


def _plainly_alike(targets: list[Tensor], sources: list[Tensor]) -> bool:
    """The usual lists, found a property at a time and not a pair: they are long, and checked at every step."""
    both = [*targets, *sources]
    return (
        all(issubclass(kind, Tensor) for kind in {type(x) for x in both})
        and {x.layout for x in both} == {torch.strided}
        and len({(x.is_cpu, x.get_device()) for x in both}) == 1
        and [x.shape for x in targets] == [x.shape for x in sources]
        and (
            all(dtype.is_floating_point for dtype in {x.dtype for x in both})
            or [x.dtype for x in targets] == [x.dtype for x in sources]
        )
        and not any(dtype.is_complex for dtype in {x.dtype for x in targets})
        and all(map(Tensor.is_contiguous, targets))
    )


def _check_pair(name: str, target: Tensor, other_name: str, other: Tensor) -> None:
    for label, tensor in ((name, target), (other_name, other)):
        _check.tensor(_OP, label, tensor)
        if tensor.is_complex():
            raise TypeError(f"{_OP}: {label} must be real; got {tensor.dtype}")
    for label, tensor in ((name, target), (other_name, other)):
        if not label.startswith("source"):
            _inplace.refuse_overlap(_OP, label, tensor)
    if target.shape != other.shape:
        raise ValueError(f"{_OP}: {name} is {_check.shape(target)} and {other_name} is {_check.shape(other)}")
    if target.device != other.device:
        raise ValueError(f"{_OP}: {name} is on {target.device} and {other_name} on {other.device}")


def reference(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float, copies: Sequence[Tensor]) -> None:
    """The formula in plain torch, one pair at a time."""
    for target, source in zip(targets, sources, strict=True):
        if target.dtype.is_floating_point:
            if 0.0 < momentum < 1.0:
                wide = _native.accumulator(target.dtype)
                source = torch.lerp(target.to(wide), source.to(wide), 1.0 - momentum)
            if momentum < 1.0:
                target.copy_(source)
        else:
            target.copy_(source)
    for target, copy in zip(targets, copies, strict=False):
        copy.copy_(target)


def _same_layout(*tensors: Tensor) -> bool:
    """Whether the elements of all lie in memory without gaps and in one order."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    return all(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def _row(target: Tensor, source: Tensor, copy: Tensor | None) -> tuple[int, ...]:
    """One tensor as an ``EmaTensor`` (csrc/cpu/ema_update.h)."""
    addresses = (target.data_ptr(), source.data_ptr(), 0 if copy is None else copy.data_ptr())
    if target.dtype.is_floating_point:
        codes = (_native.DTYPES[tensor.dtype] for tensor in (target, source))
        code_of_copy = _native.NO_TENSOR if copy is None else _native.DTYPES[copy.dtype]
        return (*addresses, target.numel(), *codes, code_of_copy)
    return (*addresses, target.numel() * target.element_size(), _native.BYTES, _native.BYTES, _native.NO_TENSOR)


@dataclass
class _Plan:
    """What kernels read of lists of tensors. A training loop updates the same ones at every step, so it is kept."""

    table: array[int]  # a row for each tensor that a kernel can take
    loose: list[int]  # the pairs with gaps in memory, which the reference updates
    # on a GPU: a row for each chunk of each tensor, (its columns..., first element, elements), and when it is there
    upload: tuple[Tensor, torch.cuda.Event] | None = None


_plans: dict[object, _Plan] = {}  # the one used last is the last
_plans_lock = Lock()
_KEPT_PLANS = 16


def _places(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """What a plan depends on: it may not outlive a tensor's move, nor its change of shape or type where it lies."""
    whole = [*map(Tensor.is_contiguous, tensors)]
    gaps = (
        () if all(whole) else tuple((t.shape, t.stride()) for t, whole in zip(tensors, whole, strict=True) if not whole)
    )
    return (*map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors), *[t.dtype for t in tensors], *whole, *gaps)


def _planned(targets: Sequence[Tensor], sources: Sequence[Tensor], copies: Sequence[Tensor]) -> _Plan:
    key = (targets[0].device, _places(targets), _places(sources), _places(copies))
    with _plans_lock:
        plan = _plans.pop(key, None)
        if plan is None:
            plan = _made(targets, sources, copies)
        _plans[key] = plan
        if len(_plans) > _KEPT_PLANS:
            del _plans[next(iter(_plans))]
    return plan


def _made(targets: Sequence[Tensor], sources: Sequence[Tensor], copies: Sequence[Tensor]) -> _Plan:
    _check_memory(targets, sources, copies)
    plan = _Plan(array("q"), [])
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        copy = copies[i] if copies else None
        if not _same_layout(target, source, *((copy,) if copy is not None else ())):
            plan.loose.append(i)
        elif target.dtype.is_floating_point or copy is None:
            plan.table.extend(_row(target, source, copy))
        else:
            plan.table.extend(_row(target, source, None))
            plan.table.extend(_row(copy, source, None))
    return plan


def _update_loose(
    plan: _Plan, targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float, copies: Sequence[Tensor]
) -> None:
    for i in plan.loose:
        reference([targets[i]], [sources[i]], momentum, copies[i : i + 1])


_COLUMNS = 7


def _check_memory(targets: Sequence[Tensor], sources: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Refuses memory that is written twice, or written for one pair and read for another: kernels take all at once.

    Tensors with gaps in memory, which are updated one after the other, are not looked at. A source may be its target.
    """
    spans = [_span(tensor) for tensor in (*targets, *copies)]
    order = sorted((i for i, (start, end) in enumerate(spans) if start < end), key=spans.__getitem__)
    for i, j in pairwise(order):
        if spans[j][0] < spans[i][1]:
            raise ValueError(f"{_OP}: {_name(i, targets)} and {_name(j, targets)} share memory: give each tensor once")
    starts = [spans[i][0] for i in order]
    for i, source in enumerate(sources):
        start, end = _span(source)
        at = order[bisect_left(starts, end) - 1] if starts and starts[0] < end else i
        itself = at == i and spans[i] == (start, end) and source.dtype == targets[i].dtype
        if max(start, spans[at][0]) < min(end, spans[at][1]) and not itself:
            raise ValueError(f"{_OP}: source {i} and {_name(at, targets)} share memory: clone the source first")


def _span(tensor: Tensor) -> tuple[int, int]:
    """First address of a tensor without gaps, and the one after its last; of others, nothing."""
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    start = tensor.data_ptr()
    return start, start + (tensor.nbytes if dense else 0)


def _name(i: int, targets: Sequence[Tensor]) -> str:
    return f"target {i}" if i < len(targets) else f"copy {i - len(targets)}"


def _reference(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float, copies: Sequence[Tensor]) -> None:
    _check_memory(targets, sources, copies)
    reference(targets, sources, momentum, copies)


def _cpu(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float, copies: Sequence[Tensor]) -> None:
    plan = _planned(targets, sources, copies)
    _update_loose(plan, targets, sources, momentum, copies)
    address, length = plan.table.buffer_info()
    _native.cpu.ema_update(address, length // _COLUMNS, momentum, _native.threads())


def _cuda(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float, copies: Sequence[Tensor]) -> None:
    plan, device = _planned(targets, sources, copies), targets[0].device
    _update_loose(plan, targets, sources, momentum, copies)
    if not plan.table:
        return
    with torch.cuda.device(device):
        chunks = _uploaded(plan, device)
        _native.cuda.ema_update(chunks.data_ptr(), len(chunks), momentum, _native.stream(targets[0]))


_captured: dict[int, Tensor] = {}  # chunks that a CUDA graph reads at every replay: never given back


def _uploaded(plan: _Plan, device: torch.device) -> Tensor:
    """The plan's chunks on the device, copied there at its first call; work on the current stream finds them."""
    stream = torch.cuda.current_stream(device)
    if torch.cuda.is_current_stream_capturing():
        if plan.upload is None:
            raise RuntimeError(f"{_OP}: call it once on these tensors before capturing a CUDA graph of it")
        # the graph may not wait for an event from outside of it: its replays come after that call, as all it reads must
        chunks = _captured[plan.upload[0].data_ptr()] = plan.upload[0]
        return chunks
    if plan.upload is None:
        # torch keeps the pinned memory until the copy is done
        chunks = _chunks(plan).pin_memory().to(device, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(stream)
        plan.upload = chunks, copied
    chunks, copied = plan.upload
    stream.wait_event(copied)
    chunks.record_stream(stream)
    return chunks


def _chunks(plan: _Plan) -> Tensor:
    most, table = _native.cuda.ema_chunk(), plan.table
    rows = [table[i : i + _COLUMNS] for i in range(0, len(table), _COLUMNS)]
    chunks = [[*row, first, min(most, row[3] - first)] for row in rows for first in range(0, row[3], most)]
    return torch.tensor(chunks, dtype=torch.int64)


def _tensors(targets: Sequence[Tensor], sources: Sequence[Tensor], copies: Sequence[Tensor]) -> list[Tensor]:
    return [*targets, *sources, *copies]


_ema_update = Op(
    "ema_update_(Tensor(a!)[] targets, Tensor[] sources, float momentum, Tensor(b!)[] copies, str? backend) -> ()",
    {
        "cuda": Implementation(_cuda, lambda t, s, m, c: native_cuda(*_tensors(t, s, c))),
        "cpu": Implementation(_cpu, lambda t, s, m, c: native_cpu(*_tensors(t, s, c))),
        "reference": Implementation(_reference, anything),
    },
    lambda *_: None,
    lambda device: ([torch.zeros(3, device=device)], [torch.ones(3, device=device)], 0.9, []),
)
