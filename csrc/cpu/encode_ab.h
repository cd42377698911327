#pragma once

#include <cstdint>

#include "dtype.h"

// ab (images, 2, plane) contiguous, of `dtype`; bins (2, count) finite, count >= 5, and weights (images, 5, plane) are
// float, or double where dtype is f64; ids (images, 5, plane).
FASTSSL_KERNEL(void encode_ab(const void* ab, const void* bins, std::int64_t images, std::int64_t plane,
                              std::int64_t count, DType dtype, std::int64_t* ids, void* weights, int threads))
