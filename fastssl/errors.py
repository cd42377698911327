"""The errors that tell a person what to do."""

from __future__ import annotations

import difflib
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
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(names)}"
    return UserError(f"unknown {kind} {str(given)!r}: {hint}")


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
