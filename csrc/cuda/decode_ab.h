// The annealed mean of quantised chroma.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// logits (images, count, plane) contiguous, of `dtype`; bins (2, count) and ab (images, 2, plane) are float, or double
// where dtype is f64.
cudaError_t decode_ab(const void* logits, const void* bins, std::int64_t images, std::int64_t plane, std::int64_t count,
                      DType dtype, double temperature, void* ab, cudaStream_t stream);

}  // namespace fastssl::cuda
