"""Facebook's repositories, a module each, for two of them have a ``MoCo``.

``moco`` (versions 1 and 2), ``moco_v3``, ``dino`` and ``mae``: ``from fastssl.compat.facebook.moco import MoCo``.
"""

from fastssl.compat.facebook import dino, mae, moco, moco_v3

__all__ = ["dino", "mae", "moco", "moco_v3"]
