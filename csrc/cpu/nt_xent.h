#pragma once

#include <cstdint>

#include "dtype.h"

// z0, z1 (n, d) contiguous, of `dtype`; loss () and lse (2, 2n) are float, or double where dtype is f64. The log-sum-exp
// of row i is lse[0][i] + lse[1][i], its maximum and the log of what is left: rounding their sum would lose what tells
// rows apart.
FASTSSL_KERNEL(void nt_xent_forward(const void* z0, const void* z1, std::int64_t n, std::int64_t d, DType dtype,
                                    double temperature, void* loss, void* lse, int threads))
// grad () has the loss's type; grad0, grad1 (n, d) are of `dtype`.
FASTSSL_KERNEL(void nt_xent_backward(const void* grad, const void* z0, const void* z1, const void* lse, std::int64_t n,
                                     std::int64_t d, DType dtype, double temperature, void* grad0, void* grad1,
                                     int threads))
