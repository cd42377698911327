"""An encoder's parameters from its input to its output: what to fine-tune, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fastssl.errors import UserError

Tuned = float | Literal["all"]
"""How much of an encoder is tuned: its last blocks, by number, 0.5 for the MLP of the last alone, or "all" of it."""


@dataclass(frozen=True)
class Layers:
    """The names of an encoder's parameters by depth.

    Attributes:
        first: before the blocks: of a ResNet the stem, of a Vision Transformer patch embedding, positions, class token.
        blocks: of each block, in order.
        last: after the blocks: of a Vision Transformer the last normalisation.
        half: those of the last block that make half a block; empty where there is no such half.
    """

    first: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    last: tuple[str, ...]
    half: tuple[str, ...] = ()

    def tuned(self, how_much: Tuned) -> frozenset[str]:
        """The parameters to tune. What follows the blocks is tuned with any of them.

        Raises:
            UserError: for a number of blocks that this encoder does not have.
        """
        if how_much == "all":
            return frozenset((*self.first, *(name for block in self.blocks for name in block), *self.last))
        if how_much == 0:
            return frozenset()
        if how_much == 0.5 and self.half:
            return frozenset((*self.half, *self.last))
        if how_much not in range(1, len(self.blocks) + 1):
            half = "0.5 for the MLP of its last, " if self.half else ""
            raise UserError(
                f"this encoder has {len(self.blocks)} blocks: tune 0, {half}1 to {len(self.blocks)} of them, or all; "
                f"got {how_much}"
            )
        return frozenset((*(name for block in self.blocks[-int(how_much) :] for name in block), *self.last))

    def choices(self) -> list[Tuned]:
        """How much to tune to see what depth is worth: nothing, half a block, 1, 2, 4 ... blocks, all."""
        doubled: list[Tuned] = [2**i for i in range(len(self.blocks).bit_length()) if 2**i <= len(self.blocks)]
        return [0, *([0.5] if self.half else []), *doubled, "all"]

    def scales(self, decay: float) -> dict[str, float]:
        """Factors of the learning rate, ``decay`` times smaller with each block towards the input.

        As in MAE's code (arXiv:2111.06377, appendix A.1): 1 for what follows the blocks, ``decay`` for the last one.
        """
        by_depth = (self.first, *self.blocks, self.last)
        top = len(by_depth) - 1
        return {name: decay ** (top - i) for i, names in enumerate(by_depth) for name in names}


def layers(encoder: nn.Module) -> Layers:
    """The layers of ``encoder``, by its ``block_names()``: for each block the names of its parts.

    An encoder without that method has a block for each of its own parts, in the order in which it was given them.
    """
    parameters = [name for name, _ in encoder.named_parameters()]
    blocks = getattr(encoder, "block_names", lambda: _parts(encoder))()
    half: tuple[str, ...] = getattr(encoder, "half_block_names", tuple)()
    by_block = [tuple(name for name in parameters if _within(name, block)) for block in blocks]
    inside = {name for block in by_block for name in block}
    end = max((i for i, name in enumerate(parameters) if name in inside), default=len(parameters))
    outside = [(i, name) for i, name in enumerate(parameters) if name not in inside]
    return Layers(
        first=tuple(name for i, name in outside if i < end),
        blocks=tuple(by_block),
        last=tuple(name for i, name in outside if i > end),
        half=tuple(name for name in parameters if _within(name, half)),
    )


def _parts(encoder: nn.Module) -> list[tuple[str, ...]]:
    return [(name,) for name, part in encoder.named_children() if next(part.parameters(), None) is not None]


def _within(parameter: str, parts: tuple[str, ...]) -> bool:
    return parameter.startswith(tuple(f"{part}." for part in parts))
