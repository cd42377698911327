"""One command that checks and measures everything on an NVIDIA GPU: ``python -m benchmarks.gpu``."""
