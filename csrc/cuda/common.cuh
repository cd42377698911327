// What the CUDA kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace fastssl::cuda {

// The codes of csrc/cpu/dtype.h.
enum class DType : std::int64_t { none = 0, f32 = 1, bf16 = 2, f16 = 3, f64 = 4, bytes = 5 };

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

template <class T>
__device__ inline T narrow(double x) { return static_cast<T>(x); }
template <class T>
__device__ inline T narrow(float x) { return static_cast<T>(x); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }
// by way of float, as torch converts
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(double x) { return narrow<__nv_bfloat16>(static_cast<float>(x)); }
template <>
__device__ inline __half narrow<__half>(double x) { return narrow<__half>(static_cast<float>(x)); }

// Calls f with a value of the type of `dtype` (its value is meaningless); `none` and `bytes` call nothing.
template <class F>
__device__ inline void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::f32: f(float{}); break;
        case DType::bf16: f(__nv_bfloat16{}); break;
        case DType::f16: f(__half{}); break;
        case DType::f64: f(double{}); break;
        default: break;
    }
}

// The block's dynamic shared memory, whose size the launch gives.
template <class T>
__device__ inline T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<T*>(memory);
}

// How many blocks a launch has, in 64 bits: more than CUDA takes must be refused, and not cut off to what 32 bits hold.
struct Blocks {
    std::int64_t x, y;
    Blocks(std::int64_t x, std::int64_t y = 1) : x(x), y(y) {}
    bool fit() const { return x <= 0x7fffffff && y <= 65535; }
};

// Launches a kernel and returns what CUDA says of the launch; what goes wrong later shows at the next synchronisation.
template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), Blocks blocks, dim3 block, std::size_t shared_bytes,
                          cudaStream_t stream, Arguments... arguments) {
    if (!blocks.fit()) return cudaErrorInvalidConfiguration;
    cudaLaunchConfig_t config = {};
    config.gridDim = {static_cast<unsigned>(blocks.x), static_cast<unsigned>(blocks.y), 1};
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// kPack elements that a thread moves at once, as loads and stores of 16 bytes.
constexpr int kPack = 8;

template <class T>
struct alignas(16) Pack {
    T values[kPack];
};

}  // namespace fastssl::cuda
