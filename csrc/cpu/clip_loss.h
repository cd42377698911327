#pragma once

#include <cstdint>

#include "dtype.h"

// a (n, d) of `a_dtype` and b (n, d) of `b_dtype`, contiguous. loss () and statistics (6, n) are float, or double where
// a is f64: for the rows of a, then for those of b, the two parts of the log-sum-exp (nt_xent.h) and 1 - P(own pair).
FASTSSL_KERNEL(void clip_loss_forward(const void* a, const void* b, std::int64_t n, std::int64_t d, DType a_dtype,
                                      DType b_dtype, double scale, void* loss, void* statistics, int threads))
// grad () has the loss's type; grad_a and grad_b (n, d) have the dtypes of a and b, and are null where not wanted.
FASTSSL_KERNEL(void clip_loss_backward(const void* grad, const void* a, const void* b, const void* statistics,
                                       std::int64_t n, std::int64_t d, DType a_dtype, DType b_dtype, double scale,
                                       void* grad_a, void* grad_b, int threads))
