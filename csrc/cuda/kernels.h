// The CUDA kernels' host functions: raw device addresses, sizes and a stream in, an error code out. None synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

// A chunk of one tensor of an exponential moving average; the rows that fastssl/ops/ema_update.py uploads.
struct EmaChunk {
    void* target;
    const void* source;
    void* copy;
    std::int64_t count;  // of the whole tensor
    std::int64_t target_dtype, source_dtype, copy_dtype;
    std::int64_t first, elements;  // of this chunk
};
static_assert(sizeof(EmaChunk) == 9 * 8);
constexpr std::int64_t kEmaChunk = 16384;

// chunks: (count) on the device.
cudaError_t ema_update(const EmaChunk* chunks, std::int64_t count, double momentum, cudaStream_t stream);

// noise (batch, length) float -> ids_keep (batch, keep), ids_restore (batch, length) int64, mask (batch, length) float.
cudaError_t random_masking(const float* noise, std::int64_t batch, std::int64_t length, std::int64_t keep,
                           std::int64_t* ids_keep, std::int64_t* ids_restore, float* mask, cudaStream_t stream);

}  // namespace fastssl::cuda
