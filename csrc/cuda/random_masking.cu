// MAE's random masking (He et al. 2021, arXiv:2111.06377): each sample keeps the `keep` patches of least noise.
//
//   order = stable argsort(noise)    ids_keep = order[:keep]    ids_restore[order[rank]] = rank    mask[order[rank]] = rank >= keep
//
// Grid: one block a sample. Block: up to 1024 threads sort the sample's keys in shared memory, bitonically, padded to a
// power of two. A key is the noise's bits, made comparable as integers, above the patch's index: the sort is a stable
// argsort with NaN last, and deterministic. Shared memory: 8 bytes a patch, so at most 4096 patches (32 KB).
// Bytes moved: 4 B L read, (8 keep + 12 L) B written.
// CUDA and not Triton: a sort with a scatter by rank, no products.
// Reference and tests: fastssl/ops/random_masking.py, tests/ops/test_random_masking.py.
#include "random_masking.h"

#include "common.cuh"

namespace fastssl::cuda {
namespace {

constexpr std::int64_t kMaxLength = 4096;

__device__ std::uint64_t sort_key(float noise, std::uint32_t index) {
    std::uint32_t bits = __float_as_uint(noise + 0.0f);  // -0 and 0 are equal, so they sort by index
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    if (isnan(noise)) bits = 0xffffffffu;
    return (static_cast<std::uint64_t>(bits) << 32) | index;
}

// keys[0 .. size), size a power of two, ascending.
__device__ void sort(std::uint64_t* keys, int size) {
    for (int run = 2; run <= size; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
                const int i = 2 * step * (pair / step) + pair % step, j = i + step;
                const bool ascending = (i & run) == 0;
                const std::uint64_t a = keys[i], b = keys[j];
                if ((a > b) == ascending) keys[i] = b, keys[j] = a;
            }
        }
    __syncthreads();
}

__global__ void random_masking_kernel(const float* noise, int length, int size, int keep, std::int64_t* ids_keep,
                                      std::int64_t* ids_restore, float* mask) {
    std::uint64_t* const keys = dynamic_shared<std::uint64_t>();
    const std::int64_t sample = blockIdx.x;
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        keys[i] = i < length ? sort_key(noise[sample * length + i], i) : ~std::uint64_t{0};
    sort(keys, size);
    for (int rank = threadIdx.x; rank < length; rank += blockDim.x) {
        const std::int64_t patch = keys[rank] & 0xffffffffu;
        ids_restore[sample * length + patch] = rank;
        mask[sample * length + patch] = rank < keep ? 0.0f : 1.0f;
        if (rank < keep) ids_keep[sample * keep + rank] = patch;
    }
}

}  // namespace

cudaError_t random_masking(const float* noise, std::int64_t batch, std::int64_t length, std::int64_t keep,
                           std::int64_t* ids_keep, std::int64_t* ids_restore, float* mask, cudaStream_t stream) {
    if (length > kMaxLength) return cudaErrorInvalidValue;
    int size = 2;
    while (size < length) size *= 2;
    const int threads = size / 2 < 32 ? 32 : size / 2 > 1024 ? 1024 : size / 2;
    return launch(random_masking_kernel, static_cast<unsigned>(batch), threads, size * sizeof(std::uint64_t), stream,
                  noise, length, size, keep, ids_keep, ids_restore, mask);
}

}  // namespace fastssl::cuda
