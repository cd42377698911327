"""Mathematics on tensors: no modules, no process group, no state."""

from fastssl.ops.nt_xent import nt_xent

__all__ = ["nt_xent"]
