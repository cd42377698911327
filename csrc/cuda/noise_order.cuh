// The order of noise among integers.
#pragma once

#include "common.cuh"

namespace fastssl::cuda {

// Unsigned numbers, all different, that order patches as a stable argsort of their noise does; NaN last, as in torch.
__device__ inline std::uint64_t sort_key(float noise, std::uint32_t patch) {
    std::uint32_t bits = __float_as_uint(noise + 0.0f);  // -0 and 0 are equal, so they sort by index
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    if (isnan(noise)) bits = 0xffffffffu;
    return (static_cast<std::uint64_t>(bits) << 32) | patch;
}

}  // namespace fastssl::cuda
