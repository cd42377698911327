#pragma once

#include <cstdint>

#include "dtype.h"

// a (n, d) of `a_dtype` and b (n, d) of `b_dtype`, contiguous. bias (), loss (), slope (), the gradient to the bias,
// and the gradients to a and b (n, d), null where not wanted, are float, or double where a is f64.
FASTSSL_KERNEL(void siglip_loss_forward(const void* a, const void* b, const void* bias, std::int64_t n, std::int64_t d,
                                        DType a_dtype, DType b_dtype, double scale, void* loss, void* slope,
                                        void* direction_a, void* direction_b, int threads))
// out (count) of `dtype` = grad () times direction (count), both double where `wide` and float otherwise.
FASTSSL_KERNEL(void siglip_loss_backward(const void* grad, const void* direction, std::int64_t count, DType dtype,
                                         bool wide, void* out, int threads))
