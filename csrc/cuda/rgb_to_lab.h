// sRGB to CIELAB.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// rgb, lab (images, 3, plane) contiguous, of `dtype`.
cudaError_t rgb_to_lab(const void* rgb, std::int64_t images, std::int64_t plane, DType dtype, void* lab,
                       cudaStream_t stream);

}  // namespace fastssl::cuda
