#pragma once

#include <cstdint>

#include "dtype.h"

// images (n, channels, image_height, image_width) contiguous, of `dtype`; order (n, count) in [0, rows columns): the cells
// of a grid of rows x columns whose tiles are taken; offsets (n, rows columns, 2): where in its cell a tile begins, with
// room for it, or null for the middle. out (n, count, channels, height, width) of `dtype`. normalize: each channel of a
// tile to mean 0 and variance 1.
FASTSSL_KERNEL(void tiles(const void* images, const std::int64_t* order, const std::int64_t* offsets, std::int64_t n,
                          std::int64_t channels, std::int64_t image_height, std::int64_t image_width,
                          std::int64_t count, std::int64_t rows, std::int64_t columns, std::int64_t height,
                          std::int64_t width, DType dtype, bool normalize, void* out, int threads))
