// MAE's random masking (He et al. 2021, arXiv:2111.06377): each sample keeps the `keep` patches of least noise.
//
//   order = stable argsort(noise)    ids_keep = order[:keep]    ids_restore[order[rank]] = rank    mask[order[rank]] = rank >= keep
//
// Grid: one block a sample. Block: up to 1024 threads sort the sample's keys in shared memory, bitonically, padded to a
// power of two. A key is the noise's bits, made comparable as integers, above the patch's index: the sort is a stable
// argsort with NaN last, and deterministic. Shared memory: 8 bytes a patch, so at most 4096 patches (32 KB).
// Of more patches, a block sorts each 4096 into the scratch; then a thread a patch counts those before it, by a binary
// search in every other run: all keys differ, so that is its rank.
// Bytes moved: 4 B L read, (8 keep + 12 L) B written; of more than 4096 patches 8 B L each way too, and the searches' reads,
// which the caches serve.
// CUDA and not Triton: a sort with a scatter by rank, no products.
// Reference and tests: fastssl/ops/random_masking.py, tests/ops/test_random_masking.py.
#include "random_masking.h"

#include "common.cuh"
#include "noise_order.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kRun = 4096;  // keys that a block sorts
constexpr std::int64_t kMaxLength = 1 << 30;

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

// The keys of `count` patches from `first` on, ascending.
__device__ void sort_noise(const float* noise, int first, int count, int size, std::uint64_t* keys) {
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        keys[i] = i < count ? sort_key(noise[first + i], first + i) : ~std::uint64_t{0};
    sort(keys, size);
}

struct Results {
    std::int64_t *ids_keep, *ids_restore;
    float* mask;
    int length, keep;

    __device__ void place(std::int64_t sample, std::uint64_t key, int rank) const {
        const std::int64_t patch = key & 0xffffffffu;
        ids_restore[sample * length + patch] = rank;
        mask[sample * length + patch] = rank < keep ? 0.0f : 1.0f;
        if (rank < keep) ids_keep[sample * keep + rank] = patch;
    }
};

__global__ void random_masking_kernel(const float* noise, int size, Results out) {
    std::uint64_t* const keys = dynamic_shared<std::uint64_t>();
    const std::int64_t sample = blockIdx.x;
    sort_noise(noise + sample * out.length, 0, out.length, size, keys);
    for (int rank = threadIdx.x; rank < out.length; rank += blockDim.x) out.place(sample, keys[rank], rank);
}

// One block a run of a sample; sorted: (batch, length).
__global__ void sort_runs_kernel(const float* noise, int length, int runs, std::uint64_t* sorted) {
    std::uint64_t* const keys = dynamic_shared<std::uint64_t>();
    const std::int64_t sample = blockIdx.x / runs;
    const int first = blockIdx.x % runs * kRun, count = min(kRun, length - first);
    sort_noise(noise + sample * length, first, count, kRun, keys);
    for (int i = threadIdx.x; i < count; i += blockDim.x) sorted[sample * length + first + i] = keys[i];
}

// How many of `count` ascending keys come before `key`.
__device__ int before(const std::uint64_t* keys, int count, std::uint64_t key) {
    int first = 0;
    while (count > 0) {
        const int half = count / 2;
        const bool lower = keys[first + half] < key;
        first = lower ? first + half + 1 : first;
        count = lower ? count - half - 1 : half;
    }
    return first;
}

__global__ void rank_kernel(const std::uint64_t* sorted, std::int64_t patches, Results out) {
    const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= patches) return;
    const std::int64_t sample = i / out.length;
    const std::uint64_t* const keys = sorted + sample * out.length;
    const std::uint64_t key = sorted[i];
    const int place = static_cast<int>(i - sample * out.length);
    int rank = place % kRun;
    for (int first = 0; first < out.length; first += kRun)
        if (first != place / kRun * kRun) rank += before(keys + first, min(kRun, out.length - first), key);
    out.place(sample, key, rank);
}

}  // namespace

cudaError_t random_masking(const float* noise, std::int64_t batch, std::int64_t length, std::int64_t keep,
                           std::int64_t* ids_keep, std::int64_t* ids_restore, float* mask, std::uint64_t* sorted,
                           cudaStream_t stream) {
    if (length > kMaxLength || (length > kRun && sorted == nullptr)) return cudaErrorInvalidValue;
    const Results out{ids_keep, ids_restore, mask, static_cast<int>(length), static_cast<int>(keep)};
    int size = 2;
    while (size < length && size < kRun) size *= 2;
    const int threads = size / 2 < 32 ? 32 : size / 2 > 1024 ? 1024 : size / 2;
    const std::size_t bytes = size * sizeof(std::uint64_t);
    if (length <= kRun)
        return launch(random_masking_kernel, batch, threads, bytes, stream, noise, size, out);
    const std::int64_t runs = (length + kRun - 1) / kRun, patches = batch * length;
    const cudaError_t error =
        launch(sort_runs_kernel, batch * runs, threads, bytes, stream, noise, length, runs, sorted);
    if (error != cudaSuccess) return error;
    return launch(rank_kernel, (patches + 255) / 256, 256, 0, stream, sorted, patches, out);
}

}  // namespace fastssl::cuda
