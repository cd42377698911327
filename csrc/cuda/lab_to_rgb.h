// CIELAB to sRGB.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// lab, rgb (images, 3, plane) contiguous, of `dtype`.
cudaError_t lab_to_rgb(const void* lab, std::int64_t images, std::int64_t plane, DType dtype, void* rgb,
                       cudaStream_t stream);

}  // namespace fastssl::cuda
