#pragma once

#include <cstdint>

#include "dtype.h"

// query, key (n, d) of `dtype` and queue (k, d) of `queue_dtype`, contiguous. loss (), share (n) and direction (n, d)
// are float, or double where dtype is f64; direction, the gradient of the loss to the query, may be null.
FASTSSL_KERNEL(void queue_info_nce_forward(const void* query, const void* key, const void* queue, std::int64_t n,
                                           std::int64_t k, std::int64_t d, DType dtype, DType queue_dtype,
                                           double temperature, void* loss, void* share, void* direction, int threads))
// grad () has the loss's type; grad_query and grad_key (n, d) are of `dtype`, and null where not wanted.
FASTSSL_KERNEL(void queue_info_nce_backward(const void* grad, const void* query, const void* share,
                                            const void* direction, std::int64_t n, std::int64_t d, DType dtype,
                                            double temperature, void* grad_query, void* grad_key, int threads))
