#pragma once

#include <cstdint>

#include "dtype.h"

// queries (n, d), keys (m, d) and negatives (k, d), each contiguous and of its own dtype; targets (n) in [0, m), null
// for 0, 1, ...; exclude (n) in [0, m), never the target, or null. What follows is float, or double where the queries
// are f64: loss () is `weight` times the sum of the rows' losses, or (n) where weight is 0; statistics (3, n) are the
// two parts of each row's log-sum-exp (nt_xent.h) and 1 - P(target); direction (n, d), the gradient of each row's own
// loss to its query, may be null.
FASTSSL_KERNEL(void info_nce_forward(const void* queries, const void* keys, const void* negatives,
                                     const std::int64_t* targets, const std::int64_t* exclude, std::int64_t n,
                                     std::int64_t m, std::int64_t k, std::int64_t d, DType queries_dtype,
                                     DType keys_dtype, DType negatives_dtype, double temperature, double weight,
                                     void* loss, void* statistics, void* direction, int threads))
// grad (n) is the gradient of the rows' losses. grad_queries (n, d) needs the direction, grad_keys (m, d) the
// statistics; each has the dtype of its rows, and is null where not wanted.
FASTSSL_KERNEL(void info_nce_backward(const void* grad, const void* queries, const void* keys,
                                      const std::int64_t* targets, const std::int64_t* exclude, const void* statistics,
                                      const void* direction, std::int64_t n, std::int64_t m, std::int64_t d,
                                      DType queries_dtype, DType keys_dtype, double temperature, void* grad_queries,
                                      void* grad_keys, int threads))
