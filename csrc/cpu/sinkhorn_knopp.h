#pragma once

#include <cstdint>

#include "dtype.h"

// scores (rows, columns) contiguous, of `dtype`; out (rows, columns) is float, or double where dtype is f64.
FASTSSL_KERNEL(void sinkhorn_knopp(const void* scores, std::int64_t rows, std::int64_t columns, DType dtype, double temp,
                                   std::int64_t iterations, void* out, int threads))
