// Reductions over a warp's lanes or a block's threads, in a fixed order: the same bits in every run.
#pragma once

#include <limits>

#include "common.cuh"

namespace fastssl::cuda {

constexpr int kWarp = 32;

struct Plus {
    template <class T>
    __device__ T operator()(T a, T b) const { return a + b; }
};

// Ignores NaN: what is summed under a maximum carries it.
struct Maximum {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
    __device__ double operator()(double a, double b) const { return fmax(a, b); }
};

// Where a maximum begins: under it, what is minus infinity stays apart from it.
template <class T>
constexpr T kLowest = std::numeric_limits<T>::lowest();
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Over `lanes` neighbours, a power of two, each of which gets the result. All lanes of the warp take part.
template <class T, class F>
__device__ T reduce_lanes(T value, F combine, int lanes = kWarp) {
    for (int step = 1; step < lanes; step *= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

// Over a block of kThreads threads in a row, each of which gets the result.
template <int kThreads, class T, class F>
__device__ T reduce_block(T value, F combine) {
    static_assert(kThreads % kWarp == 0, "whole warps");
    __shared__ T parts[kThreads / kWarp];
    value = reduce_lanes(value, combine);
    __syncthreads();  // an earlier reduction's parts have been read
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = parts[0];
#pragma unroll
    for (int i = 1; i < kThreads / kWarp; ++i) value = combine(value, parts[i]);
    return value;
}

}  // namespace fastssl::cuda
