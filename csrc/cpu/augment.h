#pragma once

#include <cstdint>

#include "dtype.h"

// One view of each of n images. `images` of bytes: image i begins at i * image_step, and its channels, rows and columns
// are so many bytes apart; or, where `places` is not null, it is (n, 3) offset, height and width of packed images, rows of
// pixels of three bytes. Of each image: crop (n, 4) top, left, height, width, inside it; flip (n); rot90 (n) in [0, 4);
// order (n, 4), each of 0 to 3 once; factors (n, 4); gray (n); sigma (n), 0 for none; solarize (n): see
// fastssl/ops/_views.py. normalization (2, 3): what a channel in [0, 255] is multiplied by, and what is then added. out
// (n, 3, size, size) of `dtype`, channels last in memory if that is asked for.
FASTSSL_KERNEL(void augment(const std::uint8_t* images, const std::int64_t* places, std::int64_t n,
                            std::int64_t image_step, std::int64_t channel_step, std::int64_t row_step,
                            std::int64_t column_step, const std::int64_t* crop, const bool* flip,
                            const std::int64_t* rot90, const std::int64_t* order, const float* factors,
                            const bool* gray, const float* sigma, const bool* solarize, std::int64_t size,
                            const float* normalization, bool bicubic, DType dtype, bool channels_last, void* out,
                            int threads))
