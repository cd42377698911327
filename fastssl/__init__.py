"""fastssl: self-supervised learning for vision on PyTorch, with its costly parts as fused native kernels."""

__version__ = "0.1.0"
