#pragma once

#include <cstdint>

#include "dtype.h"

// logits (images, count, plane) contiguous, of `dtype`; bins (2, count) and ab (images, 2, plane) are float, or double
// where dtype is f64.
FASTSSL_KERNEL(void decode_ab(const void* logits, const void* bins, std::int64_t images, std::int64_t plane,
                              std::int64_t count, DType dtype, double temperature, void* ab, int threads))
