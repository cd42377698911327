// What a masked autoencoder's decoder sees.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// x (batch, kept, width), ids (batch, length) int64, token (width) and pos (length, width) or null, both of out_dtype
// -> out (batch, length, width) of out_dtype, which is x's, or f32 where x is bf16 or f16; NaN for an index outside [0, length).
cudaError_t restore_patches_forward(const void* x, std::int64_t sample_stride, std::int64_t row_stride, DType x_dtype,
                                    std::int64_t batch, std::int64_t kept, std::int64_t width, const std::int64_t* ids,
                                    std::int64_t length, const void* token, const void* pos, void* out,
                                    DType out_dtype, cudaStream_t stream);

// grad (batch, length, width) of out_dtype -> grad_x (batch, kept, width) of x_dtype, grad_token (width), grad_pos
// (length, width), both of out_dtype; any may be null. A row with an index outside gives to grad_pos alone.
// scratch: restore_patches_scratch bytes at a multiple of 16.
cudaError_t restore_patches_backward(const void* grad, std::int64_t sample_stride, std::int64_t row_stride,
                                     DType out_dtype, std::int64_t batch, std::int64_t length, std::int64_t width,
                                     const std::int64_t* ids, std::int64_t kept, void* grad_x, DType x_dtype,
                                     void* grad_token, void* grad_pos, void* scratch, cudaStream_t stream);
std::int64_t restore_patches_scratch(std::int64_t batch, std::int64_t length, std::int64_t kept, std::int64_t width,
                                     std::int64_t accumulator_bytes, bool need_token, bool need_pos);

}  // namespace fastssl::cuda
