"""lightly.models.modules."""

from fastssl.compat.lightly.models.modules.heads import DINOProjectionHead, MoCoProjectionHead, SimCLRProjectionHead

__all__ = ["DINOProjectionHead", "MoCoProjectionHead", "SimCLRProjectionHead"]
