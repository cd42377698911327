"""Where the cases run: their inputs' device, chosen once a process, and what differs between a CPU and a GPU.

The files in benchmarks/ops say nothing of devices: while a provider makes its inputs, torch creates tensors on the
device that is chosen here (``made_there``), and random ones by ``generator()``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
AUTOTUNED = " max-autotune"  # ends the name of a compiled provider that is compiled so too, on a GPU
_device = torch.device("cpu")
_small = False
_searching = False
_mode: str | None = None
_compiler = "inductor"
_compiled: dict[Any, Any] = {}


def use(name: str) -> None:
    """From now on cases run on ``name``, "cpu" or "cuda"."""
    global _device
    _device = torch.device(name)


def search() -> None:
    """From now on compiled providers are there a second time, tuned: that takes a minute or so each."""
    global _searching
    _searching = True


def searching() -> bool:
    return _searching


def device() -> torch.device:
    return _device


def on_gpu() -> bool:
    return _device.type != "cpu"


def made_there() -> AbstractContextManager[Any]:
    """Inside, new tensors are on the device."""
    return torch.device(_device)


def generator() -> torch.Generator:
    """The same random numbers for every provider."""
    return torch.Generator(device=_device).manual_seed(0)


def sizes(*, cpu: T, gpu: T | None = None, small: T) -> T:
    """The sizes that an op is measured with: a GPU's are larger, where given; ``small`` ones only try the code."""
    if _small:
        return small
    return gpu if gpu is not None and on_gpu() else cpu


def only_on_cpu(providers: Mapping[str, T]) -> dict[str, T]:
    """Providers that cannot use a GPU: none there."""
    return {} if on_gpu() else dict(providers)


def only_on_gpu(providers: Mapping[str, T]) -> dict[str, T]:
    """Providers that need a GPU: none without."""
    return dict(providers) if on_gpu() else {}


def kept(make: Callable[..., T]) -> Callable[..., T]:
    """Inputs that the providers of a case share; a GPU's are made anew each time, for the buffers that take turns."""
    once = functools.lru_cache(1)(make)

    @functools.wraps(make)
    def inputs(*args: Any) -> T:
        return make(*args) if on_gpu() else once(*args)

    return inputs


def compiled(function: Callable[..., T], **options: Any) -> Callable[..., T]:
    """``torch.compile(function)``, once for all the buffers that take turns."""
    key = (function, _mode, *options.items())
    if key not in _compiled:
        _compiled[key] = torch.compile(function, mode=_mode, backend=_compiler, **options)
    return _compiled[key]


def forget_compiled() -> None:
    """So that a rival is compiled for the next case's shapes and not for any."""
    if _compiled:  # else torch's compiler need not even be loaded
        _compiled.clear()
        torch._dynamo.reset()


@contextmanager
def tried_out() -> Iterator[None]:
    """Inside, cases are small, and compiled functions are traced but not compiled: nothing takes long."""
    global _small, _compiler
    before = _small, _compiler
    _small, _compiler = True, "eager"
    try:
        yield
    finally:
        _small, _compiler = before


@contextmanager
def autotuned() -> Iterator[None]:
    """Inside, ``compiled`` lets torch try out kernels; its own CUDA graphs are off, for all are timed in ours."""
    global _mode
    before, _mode = _mode, "max-autotune-no-cudagraphs"
    try:
        yield
    finally:
        _mode = before


def with_autotuned(providers: Mapping[str, Callable[[], T]]) -> dict[str, Callable[[], T]]:
    """On a GPU each compiled provider twice, by torch's default and tuned, if that was asked for."""
    if not _searching or _small or not on_gpu():
        return dict(providers)
    found = {}
    for name, make in providers.items():
        found[name] = make
        if name.startswith("torch.compile") and "chunked" not in name:

            def tuned(make: Callable[[], T] = make) -> T:
                with autotuned():
                    return make()

            found[name + AUTOTUNED] = tuned
    return found
