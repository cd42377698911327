"""The errors that tell a person what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Any


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line and says what to do about it."""


def needed(module: str, what: str, remedy: str) -> Any:
    """The module of a package that need not be installed: ``what`` says what for, ``remedy`` what to do.

    Raises:
        UserError: where it cannot be imported.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that it loads is missing
        raise UserError(f"{what}, which cannot be imported here ({error}): {remedy}") from error


def unknown(kind: str, given: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry; offers the nearest one, else lists all."""
    names = sorted(known)
    near = nearest(str(given), names)
    hint = f"did you mean {near!r}?" if near else f"choose one of: {', '.join(names)}"
    return UserError(f"unknown {kind} {str(given)!r}: {hint}")


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The name that ``given`` is a slip of, or the beginning of, or that it begins with; None where there is none.

    A slip may be in one letter of four. Groups that both names begin with, as ``plan.`` does, do not count as likeness.
    """
    near: dict[str, int] = {}
    begun: dict[str, int] = {}
    for name in names:
        a, b = _without_common_groups(given.lower(), name.lower())
        apart, allowed = abs(len(a) - len(b)), max(1, min(len(a), len(b)) // 4)
        if apart <= allowed and (count := slips(a, b)) <= allowed:
            near[name] = count
        if min(len(a), len(b)) >= 3 and (a.startswith(b) or b.startswith(a)):
            begun[name] = apart
    found = near or begun
    return min(found, key=found.__getitem__, default=None)


def slips(a: str, b: str) -> int:
    """Letters to add, leave out or change, or neighbours to change places, until ``a`` is ``b``."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            least = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]


def _without_common_groups(a: str, b: str) -> tuple[str, str]:
    """``--plan.flip`` and ``--plan.flop`` as ``flip`` and ``flop``."""
    a, b = a.lstrip("-"), b.lstrip("-")
    while "." in a and "." in b and a.partition(".")[0] == b.partition(".")[0]:
        a, b = a.partition(".")[2], b.partition(".")[2]
    return a, b


def require_at_least(owner: str, settings: object, **least: float) -> None:
    """Refuses numbers among the attributes of ``settings`` that lie below their least; None is left alone.

    Raises:
        UserError: naming the first one, ``owner`` whose setting it is, and its value.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not bound <= value < math.inf:
            raise UserError(f"the {name} of {owner} must be {bound} or more; got {value}")


def require_positive(owner: str, settings: object, *names: str) -> None:
    """Likewise of those that must be finite numbers above 0."""
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"the {name} of {owner} must be a finite number above 0; got {value}")
