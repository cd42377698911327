#pragma once

#include <cstdint>

#include "dtype.h"

// center (columns) of center_dtype, f32 or f64; rows (count, columns) contiguous, of rows_dtype, f64 only with an f64 center.
FASTSSL_KERNEL(void update_center(void* center, DType center_dtype, const void* rows, std::int64_t count,
                                  std::int64_t columns, DType rows_dtype, double momentum, int threads))
