// Writes keys into a queue of rows that is used in a circle (MoCo, He et al. 2019, arXiv:1911.05722, algorithm 1).
//
//   queue[(cursor + i) mod length] = key_i, or key_i / max(|key_i|, kEpsilon), for the last `length` of the keys
//
// Grid: one block 256 / lanes keys; up to 32 lanes share a key and move 8 elements at a time. The cursor stays on the
// device: every thread reads it, and a launch of one thread advances it when all have.
// Computed in float (double for keys of f64); the squares' root is taken in double.
// Bytes moved: keys read once (a second time from the caches where they are normalised), their rows of the queue written once.
// CUDA and not Triton: mixed types, rows whose place is known on the device alone, nothing but memory traffic.
// Reference and tests: fastssl/ops/enqueue.py, tests/ops/test_enqueue.py.
#include "enqueue.h"

#include "packs.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr double kEpsilon = 1e-12;  // torch.nn.functional.normalize's

struct Sizes {
    std::int64_t length, stride, count, columns;
};

__device__ std::int64_t row_of(std::int64_t cursor, std::int64_t length) {
    const std::int64_t row = cursor % length;
    return row < 0 ? row + length : row;
}

// 1 / max(|key|, kEpsilon), in all lanes of the key.
template <int N, class A, class S>
__device__ A inverse_length(const S* key, std::int64_t columns, int lanes) {
    A squares[N] = {};
    for (std::int64_t i = std::int64_t{threadIdx.x % lanes} * N; i < columns; i += lanes * N) {
        A values[N];
        load(key + i, values);
#pragma unroll
        for (int k = 0; k < N; ++k) squares[k] += values[k] * values[k];
    }
    A sum = squares[0];
#pragma unroll
    for (int k = 1; k < N; ++k) sum += squares[k];
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const double length = sqrt(static_cast<double>(sum));
    return static_cast<A>(1.0 / (length < kEpsilon ? kEpsilon : length));  // NaN stays NaN
}

template <int N, class T, class S>
__device__ void write_key(const S* key, bool normalize, std::int64_t columns, int lanes, bool inside, T* out) {
    using A = Accumulator<S>;
    const A scale = normalize ? inverse_length<N, A>(key, inside ? columns : 0, lanes) : A(1);
    if (!inside) return;
    for (std::int64_t i = std::int64_t{threadIdx.x % lanes} * N; i < columns; i += lanes * N) {
        A values[N];
        load(key + i, values);
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] *= scale;
        store(out + i, values);
    }
}

// Keys from `skipped` on. The types are branches, alike for all threads, in place of a kernel for each of 16 pairs.
template <int N>
__global__ void __launch_bounds__(kThreads)
    enqueue_kernel(void* queue, DType queue_dtype, const std::int64_t* cursor, const void* keys, DType keys_dtype, Sizes s,
                   std::int64_t skipped, bool normalize, int lanes) {
    const std::int64_t i = skipped + std::int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes;
    const std::int64_t row = (row_of(*cursor, s.length) + i) % s.length;
    with_type(queue_dtype, [&](auto queue_type) {
        with_type(keys_dtype, [&](auto keys_type) {
            using T = decltype(queue_type);
            using S = decltype(keys_type);
            write_key<N>(static_cast<const S*>(keys) + i * s.columns, normalize, s.columns, lanes, i < s.count,
                         static_cast<T*>(queue) + row * s.stride);
        });
    });
}

__global__ void advance_kernel(std::int64_t* cursor, std::int64_t length, std::int64_t count) {
    *cursor = (row_of(*cursor, length) + count) % length;
}

std::size_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

}  // namespace

cudaError_t enqueue(void* queue, std::int64_t length, std::int64_t stride, DType queue_dtype, std::int64_t* cursor,
                    const void* keys, std::int64_t count, std::int64_t columns, DType keys_dtype, bool normalize,
                    cudaStream_t stream) {
    const std::int64_t skipped = count > length ? count - length : 0;
    const bool packed = columns % kPack == 0 && rows_on_16_bytes(queue, stride, bytes_of(queue_dtype)) && on_16_bytes(keys);
    const int lanes = lanes_of(columns, packed ? kPack : 1);
    const std::int64_t blocks = parts(count - skipped, kThreads / lanes);
    cudaError_t error = cudaSuccess;
    if (blocks > 0)
        error = launch(packed ? enqueue_kernel<kPack> : enqueue_kernel<1>, blocks, kThreads, 0, stream, queue, queue_dtype,
                       cursor, keys, keys_dtype, Sizes{length, stride, count, columns}, skipped, normalize, lanes);
    if (error != cudaSuccess) return error;
    return launch(advance_kernel, 1, 1, 0, stream, cursor, length, count);
}

}  // namespace fastssl::cuda
