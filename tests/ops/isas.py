"""The instruction sets that the C++ kernels are built for."""

ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "amx")
"""From the plainest to the best; of AVX512-BF16 with and without the matrix unit."""
