"""Options that change a view plan, field by field: what ``pretrain``, ``views`` and ``bench-data`` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, get_args, get_origin, get_type_hints

from docstring_parser import parse

from fastssl.cli.parser import PRESET_HAS, Parser
from fastssl.data import plans
from fastssl.data.plans import ViewPlan

BOUNDS = ("LOW", "HIGH")  # what a pair of numbers is called


def add_plan_options(parser: Parser, plan: ViewPlan, changes: Any = None) -> None:
    """``--plan.FIELD`` for all views and, of each named part, ``--plan.PART.FIELD``; null where nothing was given.

    Args:
        parser: gets the options.
        plan: what the help tells to be there if they are not given.
        changes: to a plan that are made besides; the parts that they name have options, whether they exist or not.
    """
    parts = _part_names(plan, changes)
    only = f" --plan.PART.FIELD changes one part alone: {', '.join(parts)}." if parts else ""
    group = parser.add_argument_group("Changes to the views", f"Of all views.{only}")
    told = {item.arg_name: item.description for item in parse(ViewPlan.__doc__ or "").params}
    of_parts = plans.changeable(of_part=True)
    for name, kind in plans.changeable().items():
        group.add_argument(f"--plan.{name}", help=f"{told[name]} {_usual(plan, name)}", **_taken(kind))
        for part in parts if name in of_parts else ():
            group.add_argument(f"--plan.{part}.{name}", help=argparse.SUPPRESS, **_taken(kind))
    for name in get_type_hints(ViewPlan):
        for where in ("", *(f"{part}." for part in parts)):
            if reason := plans.refusal(name, of_part=bool(where)):
                parser.refused[f"--plan.{where}{name}"] = f"--plan.{where}{reason}"


def early(words: Sequence[str], option: str, default: str | None) -> str | None:
    """The value of ``option`` before all are known: which others there are depends on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, nargs="?", default=default, dest="value")
    value: str | None = parser.parse_known_args(words)[0].value
    return default if value is None else value


def early_plan(words: Sequence[str], preset: Callable[[int], ViewPlan], image_size: int) -> ViewPlan:
    """``preset`` at the size that ``words`` give, else ``image_size``; one that cannot be used is refused later."""
    with suppress(ValueError):
        return preset(int(early(words, "--image_size", None) or image_size))
    return preset(image_size)


def _part_names(plan: ViewPlan, changes: Any) -> list[str]:
    named = [part.name for part in plan.parts if part.name]
    further = [name for name, value in (changes or {}).items() if isinstance(value, dict)]
    return list(dict.fromkeys([*named, *further]))


def _usual(plan: ViewPlan, name: str) -> str:
    """What the plan has in a field, in the words of the command line; of each part, where they differ."""
    values = {part.name: _words(getattr(part, name)) for part in plan.parts}
    if len(set(values.values())) == 1:
        return f"{PRESET_HAS}{next(iter(values.values()))}."
    return f"{PRESET_HAS}{', '.join(f'{value} ({part})' for part, value in values.items())}."


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _taken(kind: Any) -> dict[str, Any]:
    """What argparse is told of a field's type: a tuple is as many words."""
    if get_origin(kind) is not tuple:
        return {"type": kind}
    first, *rest = get_args(kind)
    if rest == [...]:
        return {"type": first, "nargs": "+", "metavar": "N"}
    return {"type": first, "nargs": len(BOUNDS), "metavar": BOUNDS}
