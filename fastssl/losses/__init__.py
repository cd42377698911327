"""Losses: thin modules over functions over ops."""

from fastssl.losses.nt_xent import NTXent

__all__ = ["NTXent"]
