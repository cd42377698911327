#pragma once

#include <cstdint>

#include "dtype.h"

// rgb, lab (images, 3, plane) contiguous, of `dtype`.
FASTSSL_KERNEL(void rgb_to_lab(const void* rgb, std::int64_t images, std::int64_t plane, DType dtype, void* lab,
                               int threads))
