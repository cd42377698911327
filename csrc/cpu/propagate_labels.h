#pragma once

#include <cstdint>

#include "dtype.h"

// target (d, height, width) and context (frames, d, height, width) contiguous, of `dtype`; labels
// (frames, classes, height, width) and out (classes, height, width) are float, or double where dtype is f64.
// radius < 0: no window. 1 <= k <= frames height width.
FASTSSL_KERNEL(void propagate_labels(const void* target, const void* context, const void* labels, std::int64_t frames,
                                     std::int64_t d, std::int64_t height, std::int64_t width, std::int64_t classes,
                                     DType dtype, std::int64_t radius, std::int64_t k, double temperature, void* out,
                                     int threads))
