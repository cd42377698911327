#pragma once

#include <cstdint>

#include "dtype.h"

// lab, rgb (images, 3, plane) contiguous, of `dtype`.
FASTSSL_KERNEL(void lab_to_rgb(const void* lab, std::int64_t images, std::int64_t plane, DType dtype, void* rgb,
                               int threads))
