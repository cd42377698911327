// The order of noise among integers.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// Unsigned numbers that order as the noise does; NaN last, as in torch.
inline std::uint32_t sort_key(float noise) {
    const std::uint32_t bits = to_bits(noise + 0.0f);  // -0 and 0 are equal, so they keep their order
    const std::uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return noise != noise ? 0xffffffffu : key;
}

}  // namespace
}  // namespace fastssl::FASTSSL_ISA
