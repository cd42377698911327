"""The moving average of a network's weights: MoCo's momentum encoder, the teacher of BYOL and DINO."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastssl import ops
from fastssl.ops import _check

NARROW = (torch.bfloat16, torch.float16)


def cosine(start: float, end: float, steps: int) -> Callable[[int], float]:
    """A momentum that goes from ``start`` to ``end`` over ``steps`` updates along half a cosine, as BYOL's does.

    BYOL (arXiv:2006.07733, section 3.2): ``end - (end - start) (cos(pi k / steps) + 1) / 2``.

    Raises:
        ValueError: for a momentum outside [0, 1], or fewer than one step.
    """
    start, end = _check.momentum("cosine", start, "start"), _check.momentum("cosine", end, "end")
    if _check.whole("cosine", "steps", steps) < 1:
        raise ValueError(f"cosine: steps must be at least 1; got {steps}")
    return functools.partial(_cosine, start, end, steps)  # and no lambda, which a process could not be given


def _cosine(start: float, end: float, steps: int, update: int) -> float:
    return end - (end - start) * (math.cos(math.pi * min(update / steps, 1.0)) + 1) / 2


class EMA(nn.Module):
    """A copy of a network whose weights follow the network's: ``theirs = m theirs + (1 - m) the network's``.

    MoCo (arXiv:1911.05722, eq. 2). All parameters and buffers are updated in one launch, complex ones as their two
    parts; integer and bool buffers are copied. A weight in bfloat16 or float16 never moves at momentum 0.999, so it has
    a shadow in float32, of which the copy's weight is rounded. The shadow is what is averaged, and what the state dict
    holds under the weight's name: a checkpoint of a copy in any precision loads into one in any other.

    Call ``update`` once an optimizer step, after it. The copy takes no gradient, and is called as the network is.

    Args:
        model: the network; it is copied, and not kept. Of one that DistributedDataParallel or torch.compile wraps, the
            network itself: the copy then needs no process group, and its checkpoint has the network's own names.
        momentum: in [0, 1]; or a function of the number of updates made so far (see ``cosine``).
    Raises:
        TypeError: for a model that is no module (its parameters alone, for example), or that cannot be copied: one that
            FSDP2 has sharded. Make the copy before, and shard both alike: ``fully_shard(ema.module)``.
        ValueError: for a momentum outside [0, 1], or a lazy module whose weights have no shape yet.
    """

    def __init__(self, model: nn.Module, momentum: float | Callable[[int], float]) -> None:
        super().__init__()
        _check_module(model)
        self.momentum = momentum if callable(momentum) else _check.momentum("EMA", momentum)
        self.updates = 0
        self.module = _copied(model).requires_grad_(False)
        self.shadows: dict[str, Tensor] = {}  # by the name of their weight
        self._shadowed: dict[str, tuple[int, int]] = {}
        self._follow(self._weights())
        self._loaded: dict[str, Tensor] = {}
        self.register_state_dict_post_hook(_save_shadows)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_load_shadows)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's result."""
        return self.module(*args, **kwargs)

    def current_momentum(self) -> float:
        """What the next ``update`` takes."""
        return self.momentum(self.updates) if callable(self.momentum) else self.momentum

    @torch.no_grad()
    def update(self, model: nn.Module, *, momentum: float | None = None) -> None:
        """Moves the copy towards ``model``; ``momentum`` takes the place of the average's own for this update.

        Raises:
            TypeError: for a model that is no module, or if one of its buffers is of another kind of numbers than it
                was.
            ValueError: if ``model`` has not the parameters and buffers of the one that was copied, or is elsewhere, or
                the momentum lies outside [0, 1].
        """
        _check_module(model)
        for network in (self.module, model):
            _in_parts(network)
        targets, given = _tensors(self.module), _tensors(model)
        sources = list(given.values())
        if [x.shape for x in targets.values()] != [x.shape for x in sources]:
            raise ValueError(_how_they_differ(targets, given))
        weights = _narrow(targets)
        self._follow(weights)
        pairs = list(zip(targets.values(), sources, strict=True))
        narrow = [pair for pair in pairs if pair[0].dtype in NARROW]
        wide = [pair for pair in pairs if pair[0].dtype not in NARROW]
        momentum = self.current_momentum() if momentum is None else momentum
        ops.ema_update_([t for t, _ in wide], [s for _, s in wide], momentum)
        ops.ema_update_(list(self.shadows.values()), [s for _, s in narrow], momentum, copies=[t for t, _ in narrow])
        self.updates += 1
        self._remember(weights)

    def _weights(self) -> dict[str, Tensor]:
        """The narrow ones, which have shadows."""
        return _narrow(_tensors(self.module))

    @torch.no_grad()
    def _follow(self, weights: dict[str, Tensor]) -> None:
        """Shadows of the narrow weights as they are, where these were changed from outside; and at first."""
        self.shadows = {
            name: self.shadows[name] if self._shadowed.get(name) == _place(x) else x.float()
            for name, x in weights.items()
        }
        self._remember(weights)

    def _remember(self, weights: dict[str, Tensor]) -> None:
        self._shadowed = {name: _place(x) for name, x in weights.items()}

    @torch.no_grad()
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves or casts the copy. Shadows follow their weights but stay in float32, and nothing is rounded twice."""
        self._follow(self._weights())
        exact = {name: self.shadows.get(name, x.detach()) for name, x in _tensors(self.module).items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tensors = _tensors(self.module)
        weights = _narrow(tensors)
        for name in self.shadows.keys() - weights.keys():
            tensors[name].copy_(exact[name])
        self.shadows = {
            name: (x if exact[name].is_meta else exact[name]).to(x.device, torch.float32) for name, x in weights.items()
        }
        self._remember(weights)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Before the copy's weights are loaded, which rounds them."""
        names = {name: f"{prefix}module.{name}" for name in _tensors(self.module)}
        self._loaded = {name: state_dict[key] for name, key in names.items() if key in state_dict}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def get_extra_state(self) -> dict[str, int]:
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.updates = state["updates"]

    def __getstate__(self) -> dict[str, Any]:
        self._follow(self._weights())
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's or a pickle's weights lie elsewhere, and their shadows are theirs all the same."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._remember(self._weights())


def _save_shadows(ema: EMA, state_dict: dict[str, Any], prefix: str, _: object) -> None:
    """Puts shadows in the place of their weights, and of those tied to them."""
    ema._follow(ema._weights())
    shadow_of = {id(x): ema.shadows[name] for name, x in _named(ema.module, True) if name in ema.shadows}
    for name, x in _named(ema.module, False):
        key = f"{prefix}module.{name}"
        if id(x) in shadow_of and key in state_dict:
            shadow = shadow_of[id(x)]
            state_dict[key] = torch.view_as_complex(shadow) if x.is_complex() else shadow


@torch.no_grad()
def _load_shadows(ema: EMA, _: object) -> None:
    """Shadows of what was loaded, before it was rounded."""
    ema._follow(ema._weights())
    for name, loaded in ema._loaded.items():
        value = _real(loaded) if name in ema.shadows else loaded
        if name in ema.shadows and value.shape == ema.shadows[name].shape:
            ema.shadows[name].copy_(value)
    ema._loaded = {}


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"EMA: model must be a torch.nn.Module; got {type(model).__name__}")


def _in_parts(model: nn.Module) -> None:
    """Frees the whole weights that FSDP2 gathered for the last call: what is written to them is lost."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for part in model.modules():
        if isinstance(part, fsdp.FSDPModule):
            part.reshard()


def _copied(model: nn.Module) -> nn.Module:
    if lazy := [name for name, x in model.named_parameters() if is_lazy(x)]:
        raise ValueError(f"EMA: {lazy[0]} has no shape before the model's first call: call it once, then copy it")
    try:
        return copy.deepcopy(model, _copied_otherwise(model))
    except Exception as error:
        raise TypeError(
            f"EMA: {type(model).__name__} cannot be copied ({error}); of a model for FSDP2, make the copy before "
            "fully_shard, and shard ema.module as the model"
        ) from error


def _how_they_differ(copied: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """Of two networks' tensors by name, of which some have other shapes or no counterpart."""

    def told(found: tuple[str, Tensor] | None) -> str:
        return "nothing" if found is None else f"{found[0]} {_check.shape(found[1])}"

    pairs = itertools.zip_longest(copied.items(), given.items())
    first = next(pair for pair in pairs if None in pair or pair[0][1].shape != pair[1][1].shape)
    return (
        "EMA: the model's parameters and buffers are not those of the one that was copied; "
        f"got {told(first[1])} where the copy has {told(first[0])}"
    )


def _place(x: Tensor) -> tuple[int, int]:
    """What changes with a tensor's memory, and with what is written there."""
    return x.data_ptr(), x._version


def _named(model: nn.Module, once: bool) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name; of tied ones, one or all."""
    return [*model.named_parameters(remove_duplicate=once), *model.named_buffers(remove_duplicate=once)]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, complex ones as pairs of real numbers; of tied ones, one."""
    return {name: _real(x) for name, x in _named(model, True)}


def _narrow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if x.dtype in NARROW}


def _real(x: Tensor) -> Tensor:
    distributed = sys.modules.get("torch.distributed.tensor")  # which takes a second to import
    if distributed is not None and isinstance(x, distributed.DTensor):
        x = x.to_local()  # this process's part: an average is the same of parts as of the whole
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _copied_otherwise(model: nn.Module) -> dict[int, Tensor]:
    """By id, the copies that deepcopy would not make, or not so that they can be written to."""
    # what a module computes of its weights and keeps (weight_norm does) has a history, which is not copied
    computed = {
        id(x): x.detach().clone()
        for part in model.modules()
        for x in vars(part).values()
        if isinstance(x, Tensor) and not x.is_leaf
    }
    shared = {  # an expanded buffer's elements, and those of one that is conjugated when it is read
        id(x): x.detach().resolve_conj().clone(memory_format=torch.contiguous_format)
        for x in model.buffers()
        if x.is_conj() or any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True))
    }
    return computed | shared
