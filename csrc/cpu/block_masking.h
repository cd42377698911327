#pragma once

#include <cstdint>

#include "isa.h"

// noise (batch, 4 attempts + height width) and counts (batch) in [0, height width], contiguous: of each attempt the
// numbers that choose area, aspect ratio, row and column, then one number a patch; counts patches of a sample are
// masked. aspect (ratios): height over width. 1 <= min_block <= max_block. mask (batch, height, width): 1 for a masked
// patch.
FASTSSL_KERNEL(void block_masking(const float* noise, const std::int64_t* counts, const double* aspect,
                                  std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t attempts,
                                  std::int64_t min_block, std::int64_t max_block, std::int64_t ratios, bool* mask,
                                  int threads))
