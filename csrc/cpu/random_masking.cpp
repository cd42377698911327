// MAE's random masking (He et al. 2021, arXiv:2111.06377): each sample keeps the `keep` patches of least noise.
//
//   order = stable argsort(noise)    ids_keep = order[:keep]    ids_restore[order[rank]] = rank    mask[order[rank]] = rank >= keep
//
// The noise's bits, made comparable as integers, and the patch's index form one 64-bit key: sorting the keys is a
// stable argsort, with NaN last as in torch. One sort a sample, samples shared by the threads. Not compiled per
// instruction set: sorting gains nothing from wide vectors.
// Reference and tests: fastssl/ops/random_masking.py, tests/ops/test_random_masking.py.
#include "random_masking.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fastssl {
namespace {

std::uint64_t sort_key(float noise, std::uint64_t index) {
    if (noise != noise) return (std::uint64_t{0xffffffff} << 32) | index;
    const float positive_zero = noise + 0.0f;  // -0 and 0 are equal, so they sort by index
    std::uint32_t bits;
    std::memcpy(&bits, &positive_zero, sizeof bits);
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (static_cast<std::uint64_t>(bits) << 32) | index;
}

}  // namespace

void random_masking(const float* noise, std::int64_t batch, std::int64_t length, std::int64_t keep,
                    std::int64_t* ids_keep, std::int64_t* ids_restore, float* mask, int threads) {
    std::vector<std::uint64_t> all_keys(static_cast<std::size_t>(length) * threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
        std::uint64_t* keys = all_keys.data() + length * share;
        for (std::int64_t b = batch * share / threads; b < batch * (share + 1) / threads; ++b) {
            for (std::int64_t i = 0; i < length; ++i) keys[i] = sort_key(noise[b * length + i], i);
            std::sort(keys, keys + length);
            for (std::int64_t rank = 0; rank < length; ++rank) {
                const auto patch = static_cast<std::int64_t>(keys[rank] & 0xffffffff);
                ids_restore[b * length + patch] = rank;
                mask[b * length + patch] = rank < keep ? 0.0f : 1.0f;
                if (rank < keep) ids_keep[b * keep + rank] = patch;
            }
        }
    }
}

}  // namespace fastssl
