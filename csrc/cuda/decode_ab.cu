// The annealed mean of quantised chroma (Zhang et al. 2016, arXiv:1603.08511, eq. 5).
//
//   ab = sum_q bins_q softmax(logits / T)_q
//
// Grid: one block 32 runs of pixels: a run is 16 bytes of one bin's logits (one pixel where planes are no multiple of
// that or not aligned). Block: 8 warps, which share the bins, kAtOnce of them in turn; a lane keeps maximum, sum and
// weighted sums of each pixel of its run, which the warps' parts are merged into at the end, in their order. The maximum
// is raised once for kAtOnce logits: 5 exponentials for 4. Accumulated in float (double for f64). NaN logits give NaN.
// Bytes moved: every logit read once, 8 bytes written a pixel (16 for f64).
// CUDA and not Triton: one pass over memory, and a mean of two columns is no product for tensor cores.
// Reference and tests: fastssl/ops/decode_ab.py, tests/ops/test_decode_ab.py.
#include "decode_ab.h"

#include <cfloat>

#include "color.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kWarps = kPixelThreads / 32;
template <class T>
constexpr int kAtOnce = sizeof(T) == 8 ? 2 : 4;  // as many as registers hold

// exp(x / T) = weight(x kUnit / T). In float the base is 2, which the processor has; in double, rounding x log2(e) shows.
__device__ inline float weight(float x) { return exp2f(x); }
__device__ inline double weight(double x) { return exp(x); }
template <class T>
constexpr double kUnit = 1.4426950408889634;
template <>
constexpr double kUnit<double> = 1.0;

template <class T>
__device__ inline T higher(T a, T b) { return b > a ? b : a; }  // NaN in b leaves a

// sum, and sums weighted by a and b, of exp((logit - maximum) / T).
template <class T>
struct Mean {
    T maximum, total, a, b;

    __device__ void raise(T to, T scale) {
        const T shrink = weight((maximum - to) * scale);
        maximum = to, total *= shrink, a *= shrink, b *= shrink;
    }
    __device__ void add(T by, T bin_a, T bin_b) { total += by, a += by * bin_a, b += by * bin_b; }
};

// scale: kUnit / T.
template <class S, int kCount>
__global__ void __launch_bounds__(kPixelThreads)
    decode_ab_kernel(const S* logits, const Computed<S>* bins, std::int64_t images, std::int64_t plane,
                     std::int64_t count, Computed<S> scale, Computed<S>* ab) {
    using T = Computed<S>;
    __shared__ Mean<T> parts[kWarps][32 * kCount];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t pixels = images * plane, first = std::int64_t{blockIdx.x} * 32 * kCount;
    const std::int64_t runs_a_plane = plane / kCount, run = first / kCount + lane;
    const std::int64_t mine = run < images * runs_a_plane ? run : 0;  // beyond the last: any, not stored
    const std::int64_t from = mine / runs_a_plane * (count - 1) * runs_a_plane + mine;  // of the first bin
    Mean<T> means[kCount];
    // the least number and not -inf, which less a logit of -inf would be NaN
#pragma unroll
    for (int i = 0; i < kCount; ++i) means[i] = {static_cast<T>(sizeof(T) == 8 ? -DBL_MAX : -FLT_MAX), 0, 0, 0};
    for (std::int64_t start = warp * kAtOnce<T>; start < count; start += kWarps * kAtOnce<T>) {
        Run<S, kCount> runs[kAtOnce<T>];
#pragma unroll
        for (int q = 0; q < kAtOnce<T>; ++q)  // a bin beyond the last repeats it, and weighs nothing
            runs[q] = load_run<kCount>(logits, from + (start + q < count ? start + q : count - 1) * runs_a_plane);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            T maximum = means[i].maximum;
#pragma unroll
            for (int q = 0; q < kAtOnce<T>; ++q) maximum = higher(maximum, T(widen(runs[q].values[i])));
            means[i].raise(maximum, scale);
        }
#pragma unroll
        for (int q = 0; q < kAtOnce<T>; ++q) {
            if (start + q >= count) break;
            const T bin_a = bins[start + q], bin_b = bins[count + start + q];
#pragma unroll
            for (int i = 0; i < kCount; ++i)
                means[i].add(weight((T(widen(runs[q].values[i])) - means[i].maximum) * scale), bin_a, bin_b);
        }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) parts[warp][lane * kCount + i] = means[i];
    __syncthreads();
    const int pixel = threadIdx.x;
    if (pixel >= 32 * kCount || first + pixel >= pixels) return;
    Mean<T> mean = parts[0][pixel];
    for (int part = 1; part < kWarps; ++part) {
        Mean<T> other = parts[part][pixel];
        const T maximum = higher(mean.maximum, other.maximum);
        mean.raise(maximum, scale), other.raise(maximum, scale);
        mean.total += other.total, mean.a += other.a, mean.b += other.b;
    }
    const std::int64_t its_image = (first + pixel) / plane, out = first + pixel + its_image * plane;
    ab[out] = mean.a / mean.total;
    ab[out + plane] = mean.b / mean.total;
}

}  // namespace

cudaError_t decode_ab(const void* logits, const void* bins, std::int64_t images, std::int64_t plane, std::int64_t count,
                      DType dtype, double temperature, void* ab, cudaStream_t stream) {
    return launch_for(dtype, [&](auto type) {
        using S = decltype(type);
        using T = Computed<S>;
        const bool runs = in_runs<S>(plane, {logits});
        const std::int64_t pixels = 32 * (runs ? kRun<S> : 1);
        return launch(runs ? decode_ab_kernel<S, kRun<S>> : decode_ab_kernel<S, 1>,
                      (images * plane + pixels - 1) / pixels, kPixelThreads, 0, stream,
                      static_cast<const S*>(logits), static_cast<const T*>(bins), images, plane, count,
                      static_cast<T>(kUnit<T> / temperature), static_cast<T*>(ab));
    });
}

}  // namespace fastssl::cuda
