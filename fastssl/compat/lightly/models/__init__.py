"""lightly.models."""

from fastssl.compat.lightly.models import modules, utils

__all__ = ["modules", "utils"]
