// Element types of the tensors that cross into the native core, and their conversion to and from the type computed in.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace fastssl {

// The codes that fastssl/ops/_native.py passes. `bytes` is for what is copied and not computed with.
enum class DType : std::int64_t { none = 0, f32 = 1, bf16 = 2, f16 = 3, f64 = 4, bytes = 5 };

struct bfloat16 {
    std::uint16_t bits;
};
struct float16 {
    std::uint16_t bits;
};

}  // namespace fastssl

namespace fastssl::FASTSSL_ISA {

inline float from_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline std::uint32_t to_bits(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return from_bits(static_cast<std::uint32_t>(x.bits) << 16); }
inline float widen(float16 x) {
    // exponent and mantissa moved into place and rescaled by 2^112, which also normalises subnormals
    const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fff) << 13;
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    const float scaled = from_bits(magnitude) * 5.192296858534828e33f;
    const bool special = (x.bits & 0x7c00) == 0x7c00;  // infinity or NaN
    return from_bits((special ? magnitude | 0x7f800000u : to_bits(scaled)) | sign);
}

// Rounded to nearest, ties to even; NaN stays NaN.
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, double& out) { out = x; }
inline void narrow(double x, float& out) { out = static_cast<float>(x); }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, bfloat16& out) {
    const std::uint32_t bits = to_bits(x);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}
inline void narrow(float x, float16& out) {
    const std::uint32_t bits = to_bits(x), magnitude = bits & 0x7fffffff;
    const std::uint32_t rounded = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // subnormal: adding 0.5 puts the result's bits at the end of the mantissa, rounded by the addition itself
    const std::uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    const std::uint32_t special = magnitude > 0x7f800000 ? 0x7e00u : 0x7c00u;
    const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : rounded;
    // 65520 and above round to infinity
    out.bits = static_cast<std::uint16_t>((magnitude >= 0x477ff000u ? special : finite) | ((bits >> 16) & 0x8000));
}
inline void narrow(double x, bfloat16& out) { narrow(static_cast<float>(x), out); }
inline void narrow(double x, float16& out) { narrow(static_cast<float>(x), out); }

// Calls f with a value of the C++ type of `dtype` (its value is meaningless); `none` and `bytes` call nothing.
template <class F>
inline void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::f32: f(float{}); break;
        case DType::bf16: f(bfloat16{}); break;
        case DType::f16: f(float16{}); break;
        case DType::f64: f(double{}); break;
        default: break;
    }
}

}  // namespace fastssl::FASTSSL_ISA
