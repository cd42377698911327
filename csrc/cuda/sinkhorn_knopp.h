// Sinkhorn-Knopp assignment of samples to prototypes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// scores (rows, columns) contiguous, of `dtype`; out (rows, columns) is float, or double where dtype is f64.
// scratch: sinkhorn_knopp_scratch bytes at a multiple of 16.
cudaError_t sinkhorn_knopp(const void* scores, std::int64_t rows, std::int64_t columns, DType dtype, double temp,
                           std::int64_t iterations, void* out, void* scratch, cudaStream_t stream);
std::int64_t sinkhorn_knopp_scratch(std::int64_t rows, std::int64_t columns, DType dtype);

}  // namespace fastssl::cuda
