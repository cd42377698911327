#pragma once

#include <cstdint>

#include "isa.h"

// noise (batch, length) float -> ids_keep (batch, keep), ids_restore (batch, length) int64, mask (batch, length) float.
// Throws std::length_error if `length` is over 2^32 - 1.
FASTSSL_KERNEL(void random_masking(const float* noise, std::int64_t batch, std::int64_t length, std::int64_t keep,
                                   std::int64_t* ids_keep, std::int64_t* ids_restore, float* mask, int threads))
