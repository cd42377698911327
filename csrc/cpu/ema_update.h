#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastssl {

// One tensor of the lists; the layout that fastssl/ops/ema_update.py packs (seven 64-bit integers a tensor).
struct EmaTensor {
    void* target;
    const void* source;
    void* copy;  // null where copy_dtype is none
    std::int64_t count;  // elements; for `bytes`, bytes
    DType target_dtype, source_dtype, copy_dtype;
};
static_assert(sizeof(EmaTensor) == 7 * 8);

}  // namespace fastssl

FASTSSL_KERNEL(void ema_update(const EmaTensor* tensors, std::int64_t count, double momentum, int threads))
