// Exponential moving average over lists of tensors: t += (1 - m) (s - t), optionally with a copy of t in a lower precision.
//
// Grid: one block a chunk of kEmaChunk elements, for all chunks of all tensors in one launch; the chunks' table lies in
// device memory, so any number of tensors is one launch and a CUDA graph can replay it. The first call on a list of
// tensors copies the table there, out of pinned memory on the current stream, and waits for nothing; that call cannot be
// captured, for no memory may be pinned during a capture, and every later one can. Block: 256 threads, each moving 8
// elements at a time in accesses of 16 bytes where the addresses allow, else one at a time.
// Computed in float (double where the target is f64); integer tensors are copied.
// Bytes moved: source and target read once, target and copy written once.
// CUDA and not Triton: pointers to any number of tensors of mixed types, and nothing but memory traffic.
// Reference and tests: fastssl/ops/ema_update.py, tests/ops/test_ema_update.py.
#include "ema_update.h"

#include "packs.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 256;

// As torch.lerp: from the end that is nearer. A momentum of 1 keeps the target and one of 0 copies the source, whatever
// the other holds: infinity and NaN too.
template <class A>
__device__ A blend(A old, A fresh, double momentum) {
    if (momentum == 1.0) return old;
    if (momentum == 0.0) return fresh;
    return momentum > 0.5 ? old + static_cast<A>(1.0 - momentum) * (fresh - old)
                          : fresh - static_cast<A>(momentum) * (fresh - old);
}

// kPack elements from `p`, widened. The type is one branch a pack, alike for the whole block, in place of a kernel for
// every combination of three types.
template <class A>
__device__ void load_pack(DType dtype, const void* p, std::int64_t i, A (&out)[kPack]) {
    with_type(dtype, [&](auto type) { load(static_cast<const decltype(type)*>(p) + i, out); });
}

// Stores them, and leaves in `values` what was stored.
template <class A>
__device__ void store_pack(DType dtype, void* p, std::int64_t i, A (&values)[kPack]) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
#pragma unroll
        for (int k = 0; k < kPack; ++k) values[k] = static_cast<A>(widen(narrow<S>(values[k])));
        store(static_cast<S*>(p) + i, values);
    });
}

// One element each, for what is not aligned or fills no pack.
template <class A>
__device__ A load_one(DType dtype, const void* p, std::int64_t i) {
    A value = 0;
    with_type(dtype, [&](auto type) { value = static_cast<A>(widen(static_cast<const decltype(type)*>(p)[i])); });
    return value;
}

template <class A>
__device__ A store_one(DType dtype, void* p, std::int64_t i, A value) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        static_cast<S*>(p)[i] = narrow<S>(value);
        value = static_cast<A>(widen(static_cast<S*>(p)[i]));
    });
    return value;
}

// A: what is computed in.
template <class A>
__device__ void update(const EmaChunk& chunk, double momentum) {
    const DType target = static_cast<DType>(chunk.target_dtype), source = static_cast<DType>(chunk.source_dtype);
    const DType copy = static_cast<DType>(chunk.copy_dtype);
    std::int64_t done = 0;
    // chunks begin at multiples of kPack elements, so the tensors' addresses decide
    if (on_16_bytes(chunk.target) && on_16_bytes(chunk.source) && (copy == DType::none || on_16_bytes(chunk.copy))) {
        done = chunk.elements / kPack * kPack;
        for (std::int64_t i = threadIdx.x * kPack; i < done; i += kThreads * kPack) {
            A old[kPack], fresh[kPack];
            load_pack(target, chunk.target, chunk.first + i, old);
            load_pack(source, chunk.source, chunk.first + i, fresh);
#pragma unroll
            for (int k = 0; k < kPack; ++k) old[k] = blend(old[k], fresh[k], momentum);
            store_pack(target, chunk.target, chunk.first + i, old);
            if (copy != DType::none) store_pack(copy, chunk.copy, chunk.first + i, old);
        }
    }
    for (std::int64_t i = chunk.first + done + threadIdx.x; i < chunk.first + chunk.elements; i += kThreads) {
        const A blended = blend(load_one<A>(target, chunk.target, i), load_one<A>(source, chunk.source, i), momentum);
        const A stored = store_one(target, chunk.target, i, blended);
        if (copy != DType::none) store_one(copy, chunk.copy, i, stored);
    }
}

__device__ void copy_bytes(char* target, const char* source, std::int64_t count) {
    std::int64_t done = 0;
    if (on_16_bytes(target) && on_16_bytes(source)) {
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
    if (static_cast<DType>(chunk.target_dtype) == DType::f64)
        update<double>(chunk, momentum);
    else
        update<float>(chunk, momentum);
}

}  // namespace

cudaError_t ema_update(const EmaChunk* chunks, std::int64_t count, double momentum, cudaStream_t stream) {
    if (count == 0) return cudaSuccess;
    return launch(ema_update_kernel, count, kThreads, 0, stream, chunks, momentum);
}

}  // namespace fastssl::cuda
