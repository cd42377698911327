// Soft assignment of chroma to quantised bins.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// ab (images, 2, plane) contiguous, of `dtype`; bins (2, count) finite, count >= 5, and weights (images, 5, plane) are
// float, or double where dtype is f64; ids (images, 5, plane).
cudaError_t encode_ab(const void* ab, const void* bins, std::int64_t images, std::int64_t plane, std::int64_t count,
                      DType dtype, std::int64_t* ids, void* weights, cudaStream_t stream);

}  // namespace fastssl::cuda
