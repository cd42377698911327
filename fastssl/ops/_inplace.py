"""What ops that write into their arguments owe autograd and their callers."""

from __future__ import annotations

import torch
from torch import Tensor


def changed(*tensors: Tensor) -> None:
    """Tells autograd that the tensors changed, so that a backward that saved one refuses to use it."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def refuse_overlap(op: str, name: str, tensor: Tensor) -> None:
    """A tensor that is written may not have several elements in one place."""
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(f"{op}: {name} is an expanded tensor, whose elements share memory: clone it first")


def refuse_shared(op: str, written: tuple[str, Tensor], read: tuple[str, Tensor]) -> None:
    """What is read may not lie in the storage that is written meanwhile. For tensors that have memory, not in fakes."""
    (name0, x0), (name1, x1) = written, read
    if x1.numel() and x0.untyped_storage().data_ptr() == x1.untyped_storage().data_ptr():
        raise ValueError(f"{op}: {name1} and {name0} share memory: clone the {name1} first")
