"""Self-supervised methods by name. The registry is the folder: ``methods/<name>.py`` holds the method ``<name>``."""

from __future__ import annotations

import importlib
import pkgutil

from fastssl.errors import unknown
from fastssl.methods.base import Method

__all__ = ["Method", "get", "names"]


def names() -> list[str]:
    """The methods that :func:`get` knows, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def get(name: str) -> type[Method]:
    """The :class:`Method` of module ``fastssl.methods.<name>``.

    Raises:
        UserError: offering the nearest name, if there is none of that name.
        TypeError: if the module does not define exactly one method.
    """
    if name not in names():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Method; it defines {[c.__name__ for c in found]}")
    return found[0]
