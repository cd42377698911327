#pragma once

#include <cstdint>

#include "common.cuh"

namespace fastssl::cuda {

constexpr int kAugmentLargest = 1680;  // the side of a view, whose blur must fit into a block's shared memory

// Blocks that make views of n images, each of which keeps 8 bytes of scratch memory.
std::int64_t augment_blocks(std::int64_t n, std::int64_t size);

// One view of each of n images: csrc/cpu/augment.h tells of the arguments, which are in the GPU's memory but for
// `normalization`. Images are height x width, or lie packed in `bytes` bytes: what is asked for outside of them, or
// otherwise out of its range, is a view of NaN. dtype: not f64. scratch: 8 * augment_blocks(n, size) bytes.
cudaError_t augment(const std::uint8_t* images, const std::int64_t* places, std::int64_t n, std::int64_t image_step,
                    std::int64_t channel_step, std::int64_t row_step, std::int64_t column_step, const std::int64_t* crop,
                    const bool* flip, const std::int64_t* rot90, const std::int64_t* order, const float* factors,
                    const bool* gray, const float* sigma, const bool* solarize, std::int64_t size,
                    const float* normalization, bool bicubic, DType dtype, bool channels_last, void* out,
                    std::int64_t height, std::int64_t width, std::int64_t bytes, double* scratch, cudaStream_t stream);

}  // namespace fastssl::cuda
