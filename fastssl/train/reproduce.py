"""What makes a run repeatable, and what names the place it ran at."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import fastssl
from fastssl.data.rows import Identified, identity
from fastssl.errors import UserError

THREADS_A_PROCESSOR = 4  # beyond, threads only wait for each other, and thousands of them seem to hang


def check_threads(threads: int) -> None:
    """Refuses more CPU threads than the processors here can serve.

    Raises:
        UserError: naming both numbers.
    """
    processors = os.cpu_count() or 1
    if threads > THREADS_A_PROCESSOR * processors:
        raise UserError(
            f"threads {threads} are too many for the {processors} processors here: try --threads {processors}"
        )


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seeds torch, sets its threads (0: as they are) and asks cuDNN for repeatable kernels; restores all at the end."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    rng = rng_state()
    try:
        torch.manual_seed(seed)
        torch.set_num_threads(threads or before[0])
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
        set_rng_state(rng)


def rng_state() -> dict[str, Tensor]:
    """State of torch's global generators: ``cpu``, and ``cuda:N`` for each GPU in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state |= {f"cuda:{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """The inverse of `rng_state`; GPUs that are not here are left out."""
    torch.set_rng_state(state["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda:{i}"], i)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        UserError: if it is another name, or the device is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"unknown device {name!r}: give --device auto, cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used ({reason}): give --device cpu, or auto") from error
    return device


def environment(device: torch.device) -> dict[str, str]:
    """Versions, device and threads: what a number has to be read with."""
    gpu = device.type == "cuda"
    return {
        "fastssl": fastssl.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if gpu else f"{platform.machine()} CPU",
        "threads": str(torch.get_num_threads()),
    }


def fingerprint(data: Tensor | Identified, what: str = "images") -> str:
    """Number and checksum of (N, 3, S, S) uint8 images, or of ``what`` else: tells whether they are still the same.

    Of files that are not decoded yet, the checksum is that of their names and sizes.
    """
    digest = hashlib.blake2b(identity(data), digest_size=8).hexdigest()
    return f"{len(data)} {what}, {digest}"
