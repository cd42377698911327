#pragma once

#include <cstdint>

#include "dtype.h"

// queue (length, columns) of queue_dtype, its rows `stride` elements apart; keys (count, columns) contiguous, of
// keys_dtype; cursor one number, advanced to (cursor + count) mod length.
FASTSSL_KERNEL(void enqueue(void* queue, std::int64_t length, std::int64_t stride, DType queue_dtype,
                            std::int64_t* cursor, const void* keys, std::int64_t count, std::int64_t columns,
                            DType keys_dtype, bool normalize, int threads))
