#pragma once

#include <cstdint>

#include "dtype.h"

// features (queries, d) and bank (size, d) contiguous, of `dtype`; labels (size) in [0, classes); 1 <= k <= size.
// scores (queries, classes) is float, or double where dtype is f64.
FASTSSL_KERNEL(void knn_classify(const void* features, const void* bank, const std::int64_t* labels,
                                 std::int64_t queries, std::int64_t size, std::int64_t d, DType dtype, std::int64_t k,
                                 double temperature, std::int64_t classes, void* scores, int threads))
