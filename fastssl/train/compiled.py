"""The encoder of a method, made one program by torch.compile for as long as a step is computed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastssl.errors import UserError
from fastssl.methods import Method

CALLED = ("forward", "maps", "tokens", "halves", "latents")  # of an encoder by methods; earlier ones call later ones


class Compiled:
    """The encoder of a method, and the copies of it that teachers are, compiled within :meth:`step`.

    Outside of a step they are what they were: under their own names in checkpoints and exports, and as they are when
    they are evaluated. Heads and losses are called as ever, and so are what watches the encoder's output. Each shape
    that an encoder is given has a program of its own, so that a resumed run computes by those that the run before had;
    none is left uncompiled silently.

    Args:
        method: on its device.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        kind = type(method.encoder)
        encoders = [part for part in method.modules() if type(part) is kind]
        self._programs: list[tuple[nn.Module, Mapping[str, Any]]] = []
        for encoder in encoders:
            names = [name for name in CALLED if hasattr(encoder, name)]
            self._programs.append((encoder, {name: self._program(encoder, name) for name in names}))
        self._called = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the forward and the backward pass of a step, which may call the encoder again.

        Raises:
            UserError: if the method called nothing that is compiled, or torch cannot compile it.
        """
        self._called = False
        for encoder, programs in self._programs:
            vars(encoder).update(programs)
        try:
            yield
        finally:
            for encoder, programs in self._programs:
                _forget(encoder, programs)
        if not self._called:
            name = type(self._method).__name__
            raise UserError(f"{name} calls its encoder by none of {', '.join(CALLED)}: leave --compile out")

    def _program(self, encoder: nn.Module, name: str) -> Callable[..., Any]:
        """The encoder's function ``name``, compiled when it is first called."""
        own = getattr(encoder, name)
        compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False, options=_options())

        def call(*args: Any, **kwargs: Any) -> Any:
            self._called = True
            programs = {other: vars(encoder)[other] for other in CALLED if other in vars(encoder)}
            _forget(encoder, programs)  # what it calls of itself becomes part of the same program
            try:
                return compiled(*args, **kwargs)
            except _failures() as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"the encoder cannot be compiled here ({reason}): leave --compile out") from error
            finally:
                vars(encoder).update(programs)

        return call


def _forget(encoder: nn.Module, programs: Mapping[str, Any]) -> None:
    for name in programs:
        del vars(encoder)[name]


def _options() -> dict[str, Any]:
    """Of torch's compiler: no choice between kernels by their time, which may fall out otherwise in a resumed run."""
    inductor = importlib.import_module("torch._inductor")
    return {name: True for name in ("deterministic",) if name in inductor.list_options()}


def _failures() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot compile: no compiler, something it cannot trace, or too many shapes."""
    exceptions = importlib.import_module("torch._dynamo.exc")
    return exceptions.TorchDynamoException, exceptions.FailOnRecompileLimitHit
