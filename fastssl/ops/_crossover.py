"""Where plain torch is faster than a kernel: measured once, kept in fastssl/crossover.json, asked before each choice.

The file is written by ``python -m benchmarks.crossover``: by device, "cpu" or "cuda", for each op some sizes, and for
each of them the milliseconds of the kernel and of the reference. A call is served as it was fastest at the nearest of
them, so the choice depends on the shapes alone, and a forced backend does not ask. A device without entries takes its
kernels.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent.parent / "crossover.json"
CLEARLY = 1.1  # times faster the reference must have been; less is the noise of a machine
FEW_PAIRS = 2**18  # whose similarities take a megabyte in float32


@dataclass(frozen=True)
class Point:
    """One measured size."""

    sizes: dict[str, int]
    kernel: float
    reference: float

    @property
    def reference_wins(self) -> bool:
        return self.kernel > CLEARLY * self.reference

    def distance(self, sizes: dict[str, int]) -> float:
        """From other sizes, each counted in powers of two; none counts as one."""
        return sum(abs(math.log2(max(1, sizes[axis])) - math.log2(size)) for axis, size in self.sizes.items())


@dataclass(frozen=True)
class Crossover:
    """What was measured of one op, on which processor and when."""

    points: tuple[Point, ...]
    where: str

    def reason(self, sizes: dict[str, int]) -> str | None:
        """Why the reference serves a call of these sizes, or None where the kernel is the faster one."""
        point = min(self.points, key=lambda point: point.distance(sizes))
        if not point.reference_wins:
            return None
        at = " ".join(f"{axis}={size}" for axis, size in point.sizes.items())
        return f"reference is faster at {at}: {point.reference:.3g} ms against {point.kernel:.3g} ms, {self.where}"


def storable(pairs: int, features: int) -> bool:
    """Whether plain torch may store a number for each pair: promises about memory hold for what is larger."""
    return pairs <= max(FEW_PAIRS, features)


@functools.cache
def table(device: str) -> dict[str, Crossover]:
    """The ops measured on a device, by name."""
    if not TABLE.exists():
        return {}
    return {op: read(measured) for op, measured in json.loads(TABLE.read_text()).get(device, {}).items()}


def read(measured: dict[str, Any]) -> Crossover:
    """One op's entry of the file."""
    points = tuple(Point(row["sizes"], row["kernel"], row["reference"]) for row in measured["points"])
    return Crossover(points, f"measured on {measured['processor']} on {measured['date']}")


def crossover(op: str, sizes: Callable[..., dict[str, int] | None], device: str = "cpu") -> Callable[..., str | None]:
    """The ``slower`` of an op's kernel: why the reference is to be preferred for a call's arguments.

    Args:
        op: the name of its entry; an op and its backward share one, measured together.
        sizes: from the arguments, the size along each axis of the entry; None where the kernel is to serve however
            fast the reference is, because of the memory it would take.
        device: where the kernel runs, "cpu" or "cuda".
    """

    def slower(*call: Any) -> str | None:
        reason = _reason(op, device)
        found = None if reason is None else sizes(*call)
        return None if reason is None or found is None else reason(tuple(found.items()))

    return slower


@functools.cache
def _reason(op: str, device: str) -> Callable[[tuple[tuple[str, int], ...]], str | None] | None:
    """``Crossover.reason`` of an op, which remembers; None where the kernel was never clearly slower."""
    measured = table(device).get(op)
    if measured is None or not any(point.reference_wins for point in measured.points):
        return None
    return functools.lru_cache(maxsize=256)(lambda items: measured.reason(dict(items)))
