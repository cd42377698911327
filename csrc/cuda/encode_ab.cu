// Soft assignment of chroma to quantised bins (Zhang et al. 2016, arXiv:1603.08511, section 2.1).
//
//   ids = the 5 bins nearest to (a, b), nearest first, of equally near ones the lowest
//   weights_k = exp(-d_k^2 / (2 sigma^2)) / sum over the 5, sigma = 5      (the weights are in csrc/shared/color.h)
//
// Grid: one thread a pixel. Block: 256 threads, which read the bins from shared memory, kStaged of them at a time, all
// the same one at once. A thread keeps its 5 nearest in registers, sorted; a bin enters where it is nearer than the fifth,
// behind those as near as it, which came before it. Computed in float (double for f64).
// Bytes moved: each pixel read once, 60 bytes written for it (80 for f64). ids and weights lie in planes, neighbouring
// pixels side by side, so each store of a warp within an image fills 256 or 128 adjacent bytes: wider ones of a thread
// would be fewer instructions for the same bytes. It costs five operations a bin, and some 25 for each of those that enter
// in any pixel of the warp.
// CUDA and not Triton: a sorted list in each thread's registers, and no products.
// Reference and tests: fastssl/ops/encode_ab.py, tests/ops/test_encode_ab.py.
#include "encode_ab.h"

#include "color.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kStaged = 1024;

template <class T>
struct alignas(2 * sizeof(T)) Bin {
    T a, b;
};

template <class T>
struct Nearest {
    T distance[kNearest];  // squared, rising
    std::int64_t id[kNearest];

    __device__ void enter(T entering, std::int64_t bin) {
        bool nearer[kNearest];
#pragma unroll
        for (int i = 0; i < kNearest; ++i) nearer[i] = entering < distance[i];
#pragma unroll
        for (int i = kNearest - 1; i >= 0; --i) {
            const bool moves = i > 0 && nearer[i > 0 ? i - 1 : 0];
            distance[i] = moves ? distance[i > 0 ? i - 1 : 0] : nearer[i] ? entering : distance[i];
            id[i] = moves ? id[i > 0 ? i - 1 : 0] : nearer[i] ? bin : id[i];
        }
    }
};

template <class S>
__global__ void __launch_bounds__(kPixelThreads)
    encode_ab_kernel(const S* ab, const Computed<S>* bins, std::int64_t images, std::int64_t plane, std::int64_t count,
                     std::int64_t* ids, Computed<S>* weights) {
    using T = Computed<S>;
    __shared__ Bin<T> staged[kStaged];
    const std::int64_t index = std::int64_t{blockIdx.x} * kPixelThreads + threadIdx.x;
    const bool real = index < images * plane;  // the others only help with the bins
    const std::int64_t image = real ? index / plane : 0, pixel = real ? index - image * plane : 0;
    const T a = widen(ab[image * 2 * plane + pixel]), b = widen(ab[(image * 2 + 1) * plane + pixel]);
    Nearest<T> best;
#pragma unroll
    for (int k = 0; k < kNearest; ++k) best.distance[k] = static_cast<T>(INFINITY), best.id[k] = k;
    for (std::int64_t first = 0; first < count; first += kStaged) {
        const int here = static_cast<int>(count - first < kStaged ? count - first : kStaged);
        __syncthreads();
        for (int i = threadIdx.x; i < here; i += kPixelThreads)
            staged[i] = {bins[first + i], bins[count + first + i]};
        __syncthreads();
#pragma unroll 8
        for (int i = 0; i < here; ++i) {
            const T da = a - staged[i].a, db = b - staged[i].b, distance = da * da + db * db;
            if (distance < best.distance[kNearest - 1]) best.enter(distance, first + i);
        }
    }
    if (!real) return;
    weigh_bins<T, Roots<T>>(best.distance);
    const std::int64_t out = image * kNearest * plane + pixel;
#pragma unroll
    for (int k = 0; k < kNearest; ++k) {
        ids[out + k * plane] = best.id[k];
        weights[out + k * plane] = best.distance[k];
    }
}

}  // namespace

cudaError_t encode_ab(const void* ab, const void* bins, std::int64_t images, std::int64_t plane, std::int64_t count,
                      DType dtype, std::int64_t* ids, void* weights, cudaStream_t stream) {
    return launch_for(dtype, [&](auto type) {
        using S = decltype(type);
        using T = Computed<S>;
        return launch(encode_ab_kernel<S>, blocks_for(images * plane), kPixelThreads, 0, stream,
                      static_cast<const S*>(ab), static_cast<const T*>(bins), images, plane, count, ids,
                      static_cast<T*>(weights));
    });
}

}  // namespace fastssl::cuda
