// bfloat16 as CUDA spells it: the upper half of a float, rounded to nearest even. See emulator.h.
#pragma once

#include "emulator.h"

struct __nv_bfloat16 {
    std::uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) {
        const unsigned wide = __float_as_uint(x);
        bits = std::isnan(x) ? 0x7fff : static_cast<std::uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
};

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
