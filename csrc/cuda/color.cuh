// How the colour kernels walk over pixels, and their roots.
#pragma once

#include <initializer_list>

#include "../shared/color.h"
#include "common.cuh"

namespace fastssl::cuda {

// What ../shared/color.h needs of a pixel's values.
template <class T>
struct Roots;
template <>
struct Roots<float> {
    // The processor's own logarithm and power of two are good to about 2e-7; one Newton step takes that to a rounding.
    template <int N>
    static __device__ float inverse(float x) {
        const float y = exp2f(__log2f(x) * (-1.0f / N));
        float power = y;
#pragma unroll
        for (int i = 1; i < N; ++i) power *= y;
        return y + y * ((1.0f - x * power) * (1.0f / N));
    }
    static __device__ float exponential(float x) { return expf(x); }
};
template <>
struct Roots<double> {
    template <int N>
    static __device__ double inverse(double x) { return pow(x, -1.0 / N); }
    static __device__ double exponential(double x) { return exp(x); }
};

// What elements of type S are computed in.
template <class S>
using Computed = decltype(widen(S{}));

// Neighbouring pixels of one plane: 16 bytes, or one pixel, moved in one access.
template <class S, int kCount>
struct alignas(kCount * sizeof(S)) Run {
    S values[kCount];
};
template <class S>
constexpr int kRun = 16 / sizeof(S);

// The run-th one of a tensor.
template <int kCount, class S>
__device__ inline Run<S, kCount> load_run(const S* from, std::int64_t run) {
    return reinterpret_cast<const Run<S, kCount>*>(from)[run];
}

template <class S, int kCount>
__device__ inline void store_run(const Run<S, kCount>& values, S* to, std::int64_t run) {
    reinterpret_cast<Run<S, kCount>*>(to)[run] = values;
}

// Whether every plane can be cut into whole runs of 16 bytes.
template <class S>
bool in_runs(std::int64_t plane, std::initializer_list<const void*> tensors) {
    bool aligned = plane % kRun<S> == 0;
    for (const void* p : tensors) aligned = aligned && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
    return aligned;
}

// Calls launch_one with a value of the C++ type of `dtype` (its value is meaningless).
template <class F>
cudaError_t launch_for(DType dtype, F launch_one) {
    switch (dtype) {
        case DType::f32: return launch_one(float{});
        case DType::bf16: return launch_one(__nv_bfloat16{});
        case DType::f16: return launch_one(__half{});
        case DType::f64: return launch_one(double{});
        default: return cudaErrorInvalidValue;
    }
}

constexpr int kPixelThreads = 256;

inline std::int64_t blocks_for(std::int64_t threads) { return (threads + kPixelThreads - 1) / kPixelThreads; }

// One thread a run of kCount pixels: Convert::apply(T (&)[3]) on the three channels of each.
template <class Convert, class S, int kCount>
__global__ void __launch_bounds__(kPixelThreads)
    map_pixels_kernel(const S* in, std::int64_t images, std::int64_t plane, S* out) {
    using T = Computed<S>;
    const std::int64_t runs = plane / kCount, index = std::int64_t{blockIdx.x} * kPixelThreads + threadIdx.x;
    if (index >= images * runs) return;
    const std::int64_t first = index / runs * 2 * runs + index;  // of the image's first plane
    Run<S, kCount> channels[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) channels[c] = load_run<kCount>(in, first + c * runs);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        T pixel[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) pixel[c] = widen(channels[c].values[i]);
        Convert::template apply<T>(pixel);
#pragma unroll
        for (int c = 0; c < 3; ++c) channels[c].values[i] = narrow<S>(pixel[c]);
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) store_run(channels[c], out, first + c * runs);
}

// in, out (images, 3, plane) of `dtype`.
template <class Convert>
cudaError_t map_pixels(const void* in, std::int64_t images, std::int64_t plane, DType dtype, void* out,
                       cudaStream_t stream) {
    return launch_for(dtype, [&](auto type) {
        using S = decltype(type);
        const auto from = static_cast<const S*>(in);
        const auto to = static_cast<S*>(out);
        if (in_runs<S>(plane, {in, out}))
            return launch(map_pixels_kernel<Convert, S, kRun<S>>, blocks_for(images * plane / kRun<S>), kPixelThreads, 0,
                          stream, from, images, plane, to);
        return launch(map_pixels_kernel<Convert, S, 1>, blocks_for(images * plane), kPixelThreads, 0, stream, from,
                      images, plane, to);
    });
}

}  // namespace fastssl::cuda
