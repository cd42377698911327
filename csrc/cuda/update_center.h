// The center of DINO's teacher.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// center (columns) of center_dtype, f32 or f64; rows (count, columns) contiguous, of rows_dtype, f64 only with an f64
// center. scratch: update_center_scratch bytes at a multiple of 16.
cudaError_t update_center(void* center, DType center_dtype, const void* rows, std::int64_t count, std::int64_t columns,
                          DType rows_dtype, double momentum, void* scratch, cudaStream_t stream);
std::int64_t update_center_scratch(DType center_dtype, std::int64_t count, std::int64_t columns);

}  // namespace fastssl::cuda
