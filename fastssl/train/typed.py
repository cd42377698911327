"""Settings as the types that they are annotated with, of what YAML or the command line gives."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fastssl.errors import UserError, unknown

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, Any], group: str = "") -> T:
    """``kind`` of ``values``, which stand under ``group`` in the file.

    Raises:
        UserError: naming the setting that there is not, or whose value is of another type or refused.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{group} needs settings of the form name: value; got {values!r}")
    prefix = group and f"{group}."
    kinds = {prefix + name: hint for name, hint in get_type_hints(kind).items()}
    given = {f"{prefix}{name}": value for name, value in values.items()}
    for name in given:
        if name not in kinds:
            raise unknown("setting", name, kinds)
    own = {prefix + item.name: item.default for item in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(
            **{name.removeprefix(prefix): typed(name, value, kinds[name], own[name]) for name, value in given.items()}
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def typed(name: str, value: Any, kind: Any, default: Any = None) -> Any:
    """``value`` as the annotated ``kind``; YAML reads ``1e-3`` as a word, and knows no tuples.

    Of a group of settings, those that ``value`` leaves out are those of ``default``.

    Raises:
        UserError: naming the value of another type.
    """
    if isinstance(kind, type) and is_dataclass(kind) and not isinstance(value, kind):
        return build(kind, {**asdict(default), **value} if isinstance(value, Mapping) else value, name)
    if get_origin(kind) is tuple:
        return _typed_tuple(name, value, get_args(kind))
    if get_origin(kind) is Mapping:
        return value
    members = get_args(kind) or (kind,)
    if any(get_origin(item) is Literal for item in members):
        return value  # which names there are, the settings check themselves
    plain = tuple(item for item in members if item in (int, float, str, bool, type(None)))
    if float in plain and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    if plain and type(value) not in plain:
        wanted = " or ".join("null" if item is type(None) else item.__name__ for item in plain)
        raise UserError(f"{name} must be of type {wanted}; got {value!r}")
    return value


def _typed_tuple(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple) or (kinds[-1] is not ... and len(value) != len(kinds)):
        many = "a list of" if kinds[-1] is ... else f"a list of {len(kinds)}"
        raise UserError(f"{name} must be {many} numbers; got {value!r}")
    return tuple(typed(name, item, kinds[0]) for item in value)
