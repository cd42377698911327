// float16 as CUDA spells it. See emulator.h.
#pragma once

#include "emulator.h"

struct __half {
    _Float16 value;
    __half() = default;
    __half(float x) : value(static_cast<_Float16>(x)) {}
    operator float() const { return static_cast<float>(value); }
};

inline float __half2float(__half x) { return x; }
inline __half __float2half_rn(float x) { return x; }
