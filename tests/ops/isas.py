"""The instruction sets that the C++ kernels are built for."""

ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "amx")
"""From the plainest to the best; of AVX512-BF16 with and without the matrix unit."""

BY_PAIRS = ("clip_loss", "info_nce", "nt_xent", "queue_info_nce", "siglip_loss")
"""The ops with kernels for avx512bf16, which multiply pairs of bfloat16, or of parts of floats (CMakeLists.txt)."""
