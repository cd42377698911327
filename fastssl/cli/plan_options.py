"""Options that change a view plan, field by field: what ``pretrain``, ``views`` and ``bench-data`` share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from docstring_parser import parse

from fastssl.cli.parser import Parser
from fastssl.data import plans
from fastssl.data.plans import ViewPlan


def add_plan_options(parser: Parser, parts: Iterable[str]) -> None:
    """``--plan.FIELD`` for all views and, of each of ``parts``, ``--plan.PART.FIELD``; null where nothing was given."""
    parts = list(parts)
    only = f" --plan.PART.FIELD changes one part alone: {', '.join(parts)}." if parts else ""
    group = parser.add_argument_group("Changes to the views", f"Of all views; null leaves what the preset has.{only}")
    told = {item.arg_name: item.description for item in parse(ViewPlan.__doc__ or "").params}
    for name, kind in plans.changeable().items():
        group.add_argument(f"--plan.{name}", help=told[name], **_taken(kind))
        for part in parts:
            group.add_argument(f"--plan.{part}.{name}", help=argparse.SUPPRESS, **_taken(kind))


def early(words: Sequence[str], option: str, default: str | None) -> str | None:
    """The value of ``option`` before all are known: which others there are depends on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, nargs="?", default=default, dest="value")
    value: str | None = parser.parse_known_args(words)[0].value
    return default if value is None else value


def part_names(plan: ViewPlan, changes: Any = None) -> list[str]:
    """The parts of ``plan`` that have a name, and those that ``changes`` names, whether they exist or not."""
    named = [part.name for part in plan.parts if part.name]
    further = [name for name, value in (changes or {}).items() if isinstance(value, dict)]
    return list(dict.fromkeys([*named, *further]))


def _taken(kind: Any) -> dict[str, Any]:
    """What argparse is told of a field's type: a tuple is as many words."""
    if get_origin(kind) is not tuple:
        return {"type": kind}
    first, *rest = get_args(kind)
    return {"type": first, "nargs": "+" if rest == [...] else 1 + len(rest)}
