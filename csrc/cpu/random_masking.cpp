// MAE's random masking (He et al. 2021, arXiv:2111.06377): each sample keeps the `keep` patches of least noise.
//
//   order = stable argsort(noise)    ids_keep = order[:keep]    ids_restore[order[rank]] = rank    mask[order[rank]] = rank >= keep
//
// The noise's bits are made comparable as integers, NaN last as in torch. A patch's rank is the number of patches
// that come before it: up to some hundred patches they are counted, each against a vector of others, which
// is quadratic and yet faster than any sort; beyond, the keys are sorted byte by byte from the lowest, each time by
// counting the bytes. Neither compares to branch, so nothing is left to guess wrong, and both are stable. Samples are shared
// by the threads; 16 bytes a patch of working memory a thread.
// Reference and tests: fastssl/ops/random_masking.py, tests/ops/test_random_masking.py.
#include "random_masking.h"

#include "buffer.h"
#include "dtype.h"
#include "noise_order.h"
#include "simd.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

using Keys = VectorOf<float>::integer;
constexpr int kLanes = kWidth<float>;
constexpr std::int64_t kCountedLength = kLanes == 16 ? 384 : 32 * kLanes;  // to here counting is faster than sorting

// The results of one sample.
struct Outputs {
    std::int64_t keep, *ids_keep, *ids_restore;
    float* mask;
};

// Adds one to the lanes where `holds` is true, which is -1: one instruction, with AVX-512's masks too.
void add_one(Keys& counts, Keys holds) { counts = kLanes == 16 ? (holds ? counts + 1 : counts) : counts - holds; }

// The ranks of the patches of N vectors from `start` on: those before them count if not greater, the rest if less. Of
// equal patches among these vectors, none counts.
template <int N>
void rank_vectors(const std::int32_t* keys, std::int64_t start, std::int64_t length, std::int32_t* ranks) {
    Keys own[N], before[N] = {};
    for (int r = 0; r < N; ++r) std::memcpy(&own[r], keys + start + r * kLanes, sizeof own[r]);
    for (std::int64_t j = 0; j < start; ++j)
#pragma GCC unroll 4
        for (int r = 0; r < N; ++r) add_one(before[r], keys[j] <= own[r]);
    for (std::int64_t j = start; j < length; ++j)
#pragma GCC unroll 4
        for (int r = 0; r < N; ++r) add_one(before[r], keys[j] < own[r]);
    for (int r = 0; r < N; ++r) std::memcpy(ranks + start + r * kLanes, &before[r], sizeof before[r]);
}

// False, having written nothing, where equal patches lie so near that their ranks came out equal: each such pair takes
// one from the sum of all ranks.
bool mask_by_counting(const float* noise, std::int64_t length, const Outputs& out) {
    std::int32_t keys[kCountedLength], ranks[kCountedLength], order[kCountedLength];
    for (std::int64_t i = 0; i < length; ++i) keys[i] = static_cast<std::int32_t>(sort_key(noise[i]) ^ 0x80000000u);
    for (std::int64_t i = length; i % kLanes != 0; ++i) keys[i] = 0;
    std::int64_t start = 0;
    for (; start + 3 * kLanes < length; start += 4 * kLanes) rank_vectors<4>(keys, start, length, ranks);
    for (; start < length; start += kLanes) rank_vectors<1>(keys, start, length, ranks);

    std::int32_t sum = 0;
    for (std::int64_t i = 0; i < length; ++i) sum += ranks[i];
    if (sum != length * (length - 1) / 2) return false;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < length; ++i) {
        out.ids_restore[i] = ranks[i];
        out.mask[i] = ranks[i] < out.keep ? 0.0f : 1.0f;
    }
    for (std::int64_t i = 0; i < length; ++i) order[ranks[i]] = static_cast<std::int32_t>(i);
    for (std::int64_t rank = 0; rank < out.keep; ++rank) out.ids_keep[rank] = order[rank];
    return true;
}

constexpr int kDigits = 4, kDigitBits = 8, kBuckets = 1 << kDigitBits;

// A patch in the order so far.
struct Entry {
    std::uint32_t key, patch;
    unsigned digit(int d) const { return key >> (d * kDigitBits) & (kBuckets - 1); }
};

// Reads the noise of one sample and leaves, for each digit and bucket, the rank of the first patch of that bucket.
void count_digits(const float* noise, std::int64_t length, Entry* entries, std::uint32_t (&next)[kDigits][kBuckets]) {
    std::memset(next, 0, sizeof next);
    for (std::int64_t i = 0; i < length; ++i) {
        entries[i] = {sort_key(noise[i]), static_cast<std::uint32_t>(i)};
        for (int d = 0; d < kDigits; ++d) ++next[d][entries[i].digit(d)];
    }
    std::uint32_t before[kDigits] = {};
    for (int bucket = 0; bucket < kBuckets; ++bucket)
        for (int d = 0; d < kDigits; ++d) {
            const std::uint32_t in_bucket = next[d][bucket];
            next[d][bucket] = before[d];
            before[d] += in_bucket;
        }
}

// The pass over the last digit writes ranks and not entries.
void mask_by_sorting(const float* noise, std::int64_t length, Entry* entries, const Outputs& out) {
    Entry* spare = entries + length;
    std::uint32_t next[kDigits][kBuckets];
    count_digits(noise, length, entries, next);
    for (int d = 0; d + 1 < kDigits; ++d) {
        for (std::int64_t i = 0; i < length; ++i) spare[next[d][entries[i].digit(d)]++] = entries[i];
        Entry* sorted = spare;
        spare = entries;
        entries = sorted;
    }
    for (std::int64_t i = 0; i < length; ++i) {
        const std::int64_t patch = entries[i].patch, rank = next[kDigits - 1][entries[i].digit(kDigits - 1)]++;
        out.ids_restore[patch] = rank;
        out.mask[patch] = rank < out.keep ? 0.0f : 1.0f;
        if (rank < out.keep) out.ids_keep[rank] = patch;
    }
}

}  // namespace

void random_masking(const float* noise, std::int64_t batch, std::int64_t length, std::int64_t keep,
                    std::int64_t* ids_keep, std::int64_t* ids_restore, float* mask, int threads) {
    if (length > 0xffffffff) throw_too_many("random_masking: takes at most 2^32 - 1 patches a sample on the CPU", length);
    const int shares = for_elements(threads, 16 * batch * length);  // each is ranked
    const Buffer<Entry> entries(2 * length * shares);
#pragma omp parallel for num_threads(shares) schedule(static, 1)
    for (std::int64_t share = 0; share < shares; ++share) {
        Entry* own = entries.get() + 2 * length * share;
        for (std::int64_t b = batch * share / shares; b < batch * (share + 1) / shares; ++b) {
            const Outputs out{keep, ids_keep + b * keep, ids_restore + b * length, mask + b * length};
            if (length > kCountedLength || !mask_by_counting(noise + b * length, length, out))
                mask_by_sorting(noise + b * length, length, own, out);
        }
    }
}

}  // namespace fastssl::FASTSSL_ISA
