"""The processes that other libraries' losses take without being told: all there are."""

from __future__ import annotations

import torch.distributed as dist


def everyone() -> str | None:
    """What the losses take as ``group``: all processes of torch.distributed, or None where there is but one."""
    spread = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return "world" if spread else None
