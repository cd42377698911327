// Exponential moving average over lists of tensors: t += (1 - m) (s - t), optionally with a copy of t in a lower precision.
//
// Grid: one block a chunk of kEmaChunk elements, for all chunks of all tensors in one launch; the chunks' table lies in
// device memory, so any number of tensors is one launch and a CUDA graph can replay it. Block: 256 threads, each moving
// 8 elements at a time in accesses of 16 bytes where the addresses allow, else one at a time.
// Computed in float (double where the target is f64); integer tensors are copied.
// Bytes moved: source and target read once, target and copy written once.
// CUDA and not Triton: pointers to any number of tensors of mixed types, and nothing but memory traffic.
// Reference and tests: fastssl/ops/ema_update.py, tests/ops/test_ema_update.py.
#include "common.cuh"
#include "kernels.h"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 256;

// As torch.lerp: from the end that is nearer, so that m = 1 keeps the target and m = 0 copies the source, exactly.
template <class T, class S>
__device__ T blend(T target, S source, double momentum) {
    using A = decltype(widen(T{}));
    const A old = widen(target), fresh = static_cast<A>(widen(source));
    return narrow<T>(momentum > 0.5 ? old + static_cast<A>(1.0 - momentum) * (fresh - old)
                                    : fresh - static_cast<A>(momentum) * (fresh - old));
}

__device__ bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// C is char where there is no copy.
template <class T, class S, class C, bool Copy>
__device__ void update(T* target, const S* source, C* copy, std::int64_t count, double momentum) {
    std::int64_t done = 0;
    if (aligned(target) && aligned(source) && (!Copy || aligned(copy))) {
        done = count / kPack * kPack;
        for (std::int64_t i = threadIdx.x * kPack; i < done; i += kThreads * kPack) {
            Pack<T> t = *reinterpret_cast<const Pack<T>*>(target + i);
            const Pack<S> s = *reinterpret_cast<const Pack<S>*>(source + i);
            Pack<C> c;
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                t.values[k] = blend(t.values[k], s.values[k], momentum);
                if constexpr (Copy) c.values[k] = narrow<C>(widen(t.values[k]));
            }
            *reinterpret_cast<Pack<T>*>(target + i) = t;
            if constexpr (Copy) *reinterpret_cast<Pack<C>*>(copy + i) = c;
        }
    }
    for (std::int64_t i = done + threadIdx.x; i < count; i += kThreads) {
        target[i] = blend(target[i], source[i], momentum);
        if constexpr (Copy) copy[i] = narrow<C>(widen(target[i]));
    }
}

__device__ void copy_bytes(char* target, const char* source, std::int64_t count) {
    std::int64_t done = 0;
    if (aligned(target) && aligned(source)) {
        done = count / 16 * 16;
        for (std::int64_t i = threadIdx.x * 16; i < done; i += kThreads * 16)
            *reinterpret_cast<int4*>(target + i) = *reinterpret_cast<const int4*>(source + i);
    }
    for (std::int64_t i = done + threadIdx.x; i < count; i += kThreads) target[i] = source[i];
}

__global__ void __launch_bounds__(kThreads) ema_update_kernel(const EmaChunk* chunks, double momentum) {
    const EmaChunk chunk = chunks[blockIdx.x];
    if (static_cast<DType>(chunk.target_dtype) == DType::bytes) {
        copy_bytes(static_cast<char*>(chunk.target) + chunk.first, static_cast<const char*>(chunk.source) + chunk.first,
                   chunk.elements);
        return;
    }
    with_type(static_cast<DType>(chunk.target_dtype), [&](auto target_type) {
        using T = decltype(target_type);
        T* target = static_cast<T*>(chunk.target) + chunk.first;
        with_type(static_cast<DType>(chunk.source_dtype), [&](auto source_type) {
            using S = decltype(source_type);
            const S* source = static_cast<const S*>(chunk.source) + chunk.first;
            if (static_cast<DType>(chunk.copy_dtype) == DType::none)
                update<T, S, char, false>(target, source, nullptr, chunk.elements, momentum);
            with_type(static_cast<DType>(chunk.copy_dtype), [&](auto copy_type) {
                using C = decltype(copy_type);
                update<T, S, C, true>(target, source, static_cast<C*>(chunk.copy) + chunk.first, chunk.elements, momentum);
            });
        });
    });
}

}  // namespace

cudaError_t ema_update(const EmaChunk* chunks, std::int64_t count, double momentum, cudaStream_t stream) {
    if (count == 0) return cudaSuccess;
    ema_update_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(chunks, momentum);
    return cudaGetLastError();
}

}  // namespace fastssl::cuda
