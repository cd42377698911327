"""Keys written into a queue of rows that is used in a circle, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastssl.ops import _check, _inplace, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda

_OP = "enqueue_"


def enqueue_(
    queue: Tensor, cursor: Tensor, keys: Tensor, *, normalize: bool = False, backend: str | None = None
) -> None:
    """Writes N keys over the oldest rows of a queue (MoCo, arXiv:1911.05722, algorithm 1), in place.

    Key i goes to row ``(cursor + i) mod K``, and the cursor then stands at ``(cursor + N) mod K``. N need not divide K,
    and of more than K keys the last K stay. The cursor is read and advanced on the device of the queue: nothing waits
    for it. No gradient is recorded.

    Args:
        queue: (K, D) rows, written in place; float32, bfloat16, float16 or float64.
        cursor: one int64, () or (1,), on the device of ``queue``, advanced in place. Of a value outside [0, K), as one
            of a longer queue may be, the remainder by K is taken.
        keys: (N, D), of any of these dtypes and on the device of ``queue``; N may be 0. Cast to the queue's dtype.
        normalize: divide each key by its L2 norm, or by 1e-12 if that is larger, as ``torch.nn.functional.normalize``
            does; in float32 (float64 for float64 keys) before the cast.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Raises:
        TypeError: for keys or a queue that are not floating-point, or a cursor that is not int64.
        ValueError: for other shapes, a queue without rows or columns, two devices, a queue whose rows share memory
            (an expanded one), or keys in the memory of the queue.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "queue", queue, "KD")
    _check.float_tensor(_OP, "keys", keys, "ND")
    if queue.numel() == 0:
        raise ValueError(f"{_OP}: queue needs at least one row and one column; got {_check.shape(queue)}")
    if queue.shape[1] != keys.shape[1]:
        raise ValueError(
            f"{_OP}: queue (K, D) and keys (N, D) must agree on D; got {_check.shape(queue)} and {_check.shape(keys)}"
        )
    if not isinstance(normalize, bool):
        raise TypeError(f"{_OP}: normalize must be True or False; got {type(normalize).__name__}")
    if _check.tensor(_OP, "cursor", cursor).dtype != torch.int64:
        raise TypeError(f"{_OP}: cursor must be int64; got {cursor.dtype}")
    if cursor.shape not in ((), (1,)):
        raise ValueError(f"{_OP}: cursor must be one number, () or (1); got {_check.shape(cursor)}")
    _check.one_device(_OP, ("queue", queue), ("keys", keys))
    _check.one_device(_OP, ("queue", queue), ("cursor", cursor))
    _inplace.refuse_overlap(_OP, "queue", queue)
    with torch.no_grad():
        _enqueue.call(queue, cursor, keys, normalize, backend)


def reference(queue: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    """The definition in plain torch; nothing of it waits for the device."""
    keys = keys.to(_native.accumulator(keys.dtype))
    if normalize:
        keys = torch.nn.functional.normalize(keys, dim=1)
    length, count = len(queue), len(keys)
    start = cursor % length
    rows = (start + torch.arange(max(count - length, 0), count, device=queue.device)) % length
    queue.index_copy_(0, rows, keys[-length:].to(queue.dtype))
    cursor.copy_((start + count) % length)


def _reference(queue: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    _inplace.refuse_shared(_OP, ("queue", queue), ("keys", keys))
    reference(queue, cursor, keys, normalize)


def _run(kernel: Callable[..., None], queue: Tensor, cursor: Tensor, keys: Tensor, normalize: bool, last: int) -> None:
    """A native kernel, whose last argument is the number of threads or the stream."""
    _inplace.refuse_shared(_OP, ("queue", queue), ("keys", keys))
    keys = keys.contiguous()
    kernel(
        queue.data_ptr(),
        queue.shape[0],
        queue.stride(0),
        _native.DTYPES[queue.dtype],
        cursor.data_ptr(),
        keys.data_ptr(),
        *keys.shape,
        _native.DTYPES[keys.dtype],
        normalize,
        last,
    )


def _cpu(queue: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    _run(_native.cpu.enqueue, queue, cursor, keys, normalize, _native.threads())


def _cuda(queue: Tensor, cursor: Tensor, keys: Tensor, normalize: bool) -> None:
    with torch.cuda.device(queue.device):
        _run(_native.cuda.enqueue, queue, cursor, keys, normalize, _native.stream(queue))


def _gaps(queue: Tensor) -> str | None:
    if queue.shape[1] > 1 and queue.stride(1) != 1:
        return f"it takes a queue whose rows have no gaps, got strides {tuple(queue.stride())}"
    return None


_enqueue = Op(
    f"{_OP}(Tensor(a!) queue, Tensor(b!) cursor, Tensor keys, bool normalize, str? backend) -> ()",
    {
        "cuda": Implementation(_cuda, lambda queue, cursor, keys, _: native_cuda(queue, cursor, keys) or _gaps(queue)),
        "cpu": Implementation(_cpu, lambda queue, cursor, keys, _: native_cpu(queue, cursor, keys) or _gaps(queue)),
        "reference": Implementation(_reference, anything),
    },
    lambda *_: None,
    lambda device: (
        torch.zeros(5, 4, device=device),
        torch.full((), 3, device=device),
        torch.randn(3, 4, device=device),
        True,
    ),
)
