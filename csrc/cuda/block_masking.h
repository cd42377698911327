// Masks of rectangular blocks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

constexpr std::int64_t kMaxRatios = 64;
constexpr std::int64_t kMaxMaskBytes = 47 * 1024;  // of a sample's mask in bits, each row rounded up to 64 columns

// noise (batch, 4 attempts + height * width), counts (batch) int64, of which those outside [0, height * width] count as the
// nearest; aspect (ratios), in host memory and read at once -> mask (batch, height, width).
cudaError_t block_masking(const float* noise, const std::int64_t* counts, const double* aspect, std::int64_t batch,
                          std::int64_t height, std::int64_t width, std::int64_t attempts, std::int64_t min_block,
                          std::int64_t max_block, std::int64_t ratios, bool* mask, cudaStream_t stream);

}  // namespace fastssl::cuda
