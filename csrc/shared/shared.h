// What compilers must be told of what the C++ and the CUDA kernels share.
#pragma once

// before a function or a constant
#if defined(__CUDACC__)
#define FASTSSL_SHARED __device__
#else
#define FASTSSL_SHARED
#endif

// before a loop over a pixel's three channels
#if defined(__CUDACC__)
#define FASTSSL_UNROLL _Pragma("unroll")
#else
#define FASTSSL_UNROLL _Pragma("GCC unroll 4")
#endif
