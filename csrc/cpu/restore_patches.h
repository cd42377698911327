#pragma once

#include "patches.h"

// x (batch, kept, width), ids (batch, length) int64, token (width) and pos (length, width), or null, of out_dtype
// -> out (batch, length, width) of out_dtype, which is x's, or f32 where x is bf16 or f16.
// Returns -1; or the position in `ids` of the first index outside [0, length), having written nothing.
FASTSSL_KERNEL(std::int64_t restore_patches_forward(const void* x, std::int64_t sample_stride, std::int64_t row_stride,
                                                    DType x_dtype, std::int64_t batch, std::int64_t kept,
                                                    std::int64_t width, const std::int64_t* ids, std::int64_t length,
                                                    const void* token, const void* pos, void* out, DType out_dtype,
                                                    int threads))

// grad (batch, length, width) of out_dtype -> grad_x (batch, kept, width) of x_dtype, grad_token (width) and grad_pos
// (length, width) of out_dtype; each may be null. Returns as the forward does.
FASTSSL_KERNEL(std::int64_t restore_patches_backward(const void* grad, std::int64_t sample_stride, std::int64_t row_stride,
                                                     DType out_dtype, std::int64_t batch, std::int64_t length,
                                                     std::int64_t width, const std::int64_t* ids, std::int64_t kept,
                                                     void* grad_x, DType x_dtype, void* grad_token, void* grad_pos,
                                                     int threads))
