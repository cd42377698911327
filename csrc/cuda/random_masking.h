// MAE's random masking.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

// noise (batch, length) float -> ids_keep (batch, keep), ids_restore (batch, length) int64, mask (batch, length) float.
// sorted: scratch (batch, length), or null where length <= 4096.
cudaError_t random_masking(const float* noise, std::int64_t batch, std::int64_t length, std::int64_t keep,
                           std::int64_t* ids_keep, std::int64_t* ids_restore, float* mask, std::uint64_t* sorted,
                           cudaStream_t stream);

}  // namespace fastssl::cuda
