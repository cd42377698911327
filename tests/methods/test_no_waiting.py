"""No training step waits for a GPU but to read the loss, which is logged.

Views and weights have shapes and no memory: whatever asks for a number, or for a shape that depends on numbers, is
seen, wherever it is called from. What a step draws for the host, single numbers into which no tensor went, may be read.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastssl import methods
from fastssl.optim import build_optimizer
from fastssl.train import config as configs
from fastssl.train.health import CollapseWatch
from fastssl.train.loop import _Trainer

READ = torch.ops.aten._local_scalar_dense.default
NUMBERS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)  # of Python
NUMBER = 0.5  # what is read off a tensor that has none


def waits(func: Any, given: list[Tensor]) -> bool:
    """Whether what comes out, or its shape, depends on numbers."""
    if func is torch.ops.aten.index.Tensor:  # where the places are told by a mask
        return any(x.dtype in (torch.bool, torch.uint8) for x in given[1:])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class Waits(TorchDispatchMode):
    """Notes the operations that would make a host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._of_host: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        host = func in NUMBERS or all(id(x) in self._of_host for x in given)
        if waits(func, given) and not host:
            self.found.append(str(func))
        if func is READ:
            return NUMBER
        made = func(*args, **(kwargs or {}))
        if host and isinstance(made, Tensor) and made.ndim == 0:
            self._of_host[id(made)] = made
        return made


def without_memory(mode: FakeTensorMode, method: methods.Method) -> methods.Method:
    """A copy of a method whose weights have no memory."""
    empty = copy.deepcopy(method)
    weights: dict[int, nn.Parameter] = {}
    for part in empty.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                there = nn.Parameter(mode.from_tensor(weight.detach()), weight.requires_grad)
                part._parameters[name] = weights.setdefault(id(weight), there)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer)
    return empty


FURTHER = [("swav", {"queue": 6, "queue_epochs": 0})]  # settings by which a step does more; this queue is full


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in methods.names()), *FURTHER])
def test_a_step_reads_the_loss_and_nothing_else(name: str, settings: dict[str, Any], build: Any, views_of: Any) -> None:
    method = build(name, **settings).train()
    views = views_of(method)
    method.prepare(iter([views]))
    mode, waits = FakeTensorMode(), Waits()
    empty = without_memory(mode, method)
    views = [mode.from_tensor(view) for view in views]
    trainer = _Trainer.__new__(_Trainer)
    trainer.config, trainer.device, trainer.method = configs.recipe(name), torch.device("cpu"), empty
    trainer.loader = SimpleNamespace(steps_per_epoch=5)  # type: ignore[assignment]
    trainer.health, trainer.computing = CollapseWatch(empty), nullcontext
    trainer.epoch, trainer.step, trainer.seconds = 0, 1, 0.0
    with mode, waits:
        trainer.optimizer = build_optimizer(empty, trainer.config.optim)
        trainer._train_step(views)
    assert waits.found == [str(READ)]
