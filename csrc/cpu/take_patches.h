#pragma once

#include "patches.h"

// x (batch, length, width), ids (batch, kept) int64, pos (length, width) of out_dtype or null
// -> out (batch, kept, width) of out_dtype, which is x's, or f32 where x is bf16 or f16.
// Returns -1; or the position in `ids` of the first index outside [0, length), having written nothing.
FASTSSL_KERNEL(std::int64_t take_patches_forward(const void* x, std::int64_t sample_stride, std::int64_t row_stride,
                                                 DType x_dtype, std::int64_t batch, std::int64_t length,
                                                 std::int64_t width, const std::int64_t* ids, std::int64_t kept,
                                                 const void* pos, void* out, DType out_dtype, int threads))

// grad (batch, kept, width) of out_dtype -> grad_x (batch, length, width) of x_dtype, grad_pos (length, width) of
// out_dtype; either may be null. Returns as the forward does.
FASTSSL_KERNEL(std::int64_t take_patches_backward(const void* grad, std::int64_t sample_stride, std::int64_t row_stride,
                                                  DType out_dtype, std::int64_t batch, std::int64_t kept,
                                                  std::int64_t width, const std::int64_t* ids, std::int64_t length,
                                                  void* grad_x, DType x_dtype, void* grad_pos, int threads))
