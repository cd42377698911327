// Exponential moving average over lists of tensors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

// A chunk of one tensor; the rows that fastssl/ops/ema_update.py uploads.
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

}  // namespace fastssl::cuda
