// Tiles of a grid over each image.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// images (n, channels, image_height, image_width), order (n, count) int64, offsets (n, rows * columns, 2) int64 or null
// -> out (n, count, channels, height, width). A cell or a place outside makes its tile NaN.
cudaError_t tiles(const void* images, const std::int64_t* order, const std::int64_t* offsets, std::int64_t n,
                  std::int64_t channels, std::int64_t image_height, std::int64_t image_width, std::int64_t count,
                  std::int64_t rows, std::int64_t columns, std::int64_t height, std::int64_t width, DType dtype,
                  bool normalize, void* out, cudaStream_t stream);

}  // namespace fastssl::cuda
