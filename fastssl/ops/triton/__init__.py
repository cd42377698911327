"""Triton kernels, one file an op; imported when a CUDA tensor first needs one."""
