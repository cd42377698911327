// The k largest of a stream of values and where each came from; among equal ones the earliest, whatever their order.
//
// Candidates above a threshold are appended; when there is no room left, the k largest remain, in their order, and the
// least of them becomes the threshold. So a stream costs one comparison a value, and rarely more.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace fastssl::FASTSSL_ISA {

// Bit i is set where a[i] > b[i]; at most 16 lanes.
template <class T>
inline unsigned lanes_above(Vec<T> a, Vec<T> b) {
    unsigned bits = 0;
    for (int i = 0; i < kWidth<T>; ++i) bits |= static_cast<unsigned>(a[i] > b[i]) << i;
    return bits;
}

#if defined(__AVX512F__)
template <>
inline unsigned lanes_above<float>(Vec<float> a, Vec<float> b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}
template <>
inline unsigned lanes_above<double>(Vec<double> a, Vec<double> b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
}
#elif defined(__AVX2__)
template <>
inline unsigned lanes_above<float>(Vec<float> a, Vec<float> b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
template <>
inline unsigned lanes_above<double>(Vec<double> a, Vec<double> b) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)));
}
#elif defined(__x86_64__)
template <>
inline unsigned lanes_above<float>(Vec<float> a, Vec<float> b) {
    return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpgt_ps(a, b)));
}
template <>
inline unsigned lanes_above<double>(Vec<double> a, Vec<double> b) {
    return static_cast<unsigned>(_mm_movemask_pd(_mm_cmpgt_pd(a, b)));
}
#endif

template <class T>
struct OrderedKey;
template <>
struct OrderedKey<float> {
    using scalar = std::int32_t;
    using bits = std::uint32_t;
};
template <>
struct OrderedKey<double> {
    using scalar = std::int64_t;
    using bits = std::uint64_t;
};

// Room for the candidates of one stream when its k largest of at most `length` are wanted, in whole vectors.
template <class T>
inline std::int64_t candidate_capacity(std::int64_t k, std::int64_t length) {
    const std::int64_t roomy = k + (k > 16 ? k : 16), enough = roomy < length ? roomy : length;
    return (enough + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}

// values as integers in the same order (-0 as 0), padded to whole vectors with the least. No value is NaN.
template <class T>
inline void ordered_keys(const T* values, std::int64_t count, typename OrderedKey<T>::scalar* keys) {
    using Integer = typename VectorOf<T>::integer;
    using Key = typename OrderedKey<T>::scalar;
    constexpr int top = 8 * sizeof(Key) - 1;
    const Key least = static_cast<Key>(typename OrderedKey<T>::bits{1} << top);
    for (std::int64_t i = 0; i < count; i += kWidth<T>) {
        const Vec<T> positive_zero = load<T>(values + i) + T(0);
        Integer bits;
        std::memcpy(&bits, &positive_zero, sizeof bits);
        bits ^= (bits >> top) & ~least;
        std::memcpy(keys + i, &bits, sizeof bits);
    }
    for (std::int64_t i = count; i % kWidth<T> != 0; ++i) keys[i] = least;
}

// How many of `count` keys, padded to whole vectors, are at least `bound`.
template <class T>
inline std::int64_t count_from(const typename OrderedKey<T>::scalar* keys, std::int64_t count,
                               typename OrderedKey<T>::scalar bound) {
    using Integer = typename VectorOf<T>::integer;
    Integer counts = {};
    for (std::int64_t i = 0; i < count; i += kWidth<T>) {
        Integer key;
        std::memcpy(&key, keys + i, sizeof key);
        counts -= key >= bound;
    }
    std::int64_t total = 0;
    for (int i = 0; i < kWidth<T>; ++i) total += counts[i];
    return total;
}

// Keeps the k largest of count >= k candidates, in their order, and returns the least of them. The k-th largest key is
// found bit by bit: no branch depends on the data, and no order of the data is slow. `keys` is working memory; values
// and keys have room for whole vectors.
template <class T>
inline T keep_largest(T* values, std::int64_t* ids, std::int64_t count, std::int64_t k,
                      typename OrderedKey<T>::scalar* keys) {
    using Key = typename OrderedKey<T>::scalar;
    using Bits = typename OrderedKey<T>::bits;
    constexpr int top = 8 * sizeof(Key) - 1;
    constexpr Bits sign = Bits{1} << top;
    ordered_keys<T>(values, count, keys);
    Bits found = 0;
    for (int bit = top; bit >= 0; --bit) {
        const Bits higher = found | (Bits{1} << bit);
        const std::int64_t above = count_from<T>(keys, count, static_cast<Key>(higher ^ sign));
        if (above >= k) found = higher;
        if (above == k) break;
    }
    const Key bound = static_cast<Key>(found ^ sign);
    std::int64_t from_bound = count_from<T>(keys, count, bound), above_bound = 0;
    for (std::int64_t i = 0; i < count; ++i) above_bound += keys[i] > bound;
    std::int64_t equal_left = from_bound == k ? k : k - above_bound, kept = 0;
    T least = T(__builtin_inf());
    for (std::int64_t i = 0; i < count; ++i) {
        const bool equal = keys[i] == bound, keep = keys[i] > bound || (equal && equal_left > 0);
        equal_left -= equal;
        const T value = values[i];
        values[kept] = value;
        ids[kept] = ids[i];
        kept += keep;
        least = keep && value < least ? value : least;
    }
    return least;
}

// The candidates of several streams, in working memory that a kernel lays out: [stream][capacity] of each, the capacity
// from candidate_capacity, and thresholds [stream] side by side, to compare with as vectors.
template <class T>
struct Candidates {
    std::int64_t k, capacity;
    T* thresholds;
    T* values;
    std::int64_t* ids;
    std::int64_t* counts;
    typename OrderedKey<T>::scalar* keys;  // [capacity], shared

    // A stream that is not open takes nothing.
    void begin(std::int64_t stream, bool open) const {
        thresholds[stream] = T(open ? -__builtin_inf() : __builtin_inf());
        counts[stream] = 0;
    }

    // Those from a stream on.
    Candidates from(std::int64_t stream) const {
        const std::int64_t start = stream * capacity;
        return {k, capacity, thresholds + stream, values + start, ids + start, counts + stream, keys};
    }

    // For a value above its stream's threshold. Ids of a stream come in rising order.
    void add(std::int64_t stream, T value, std::int64_t id) const {
        const std::int64_t start = stream * capacity;
        std::int64_t& count = counts[stream];
        values[start + count] = value;
        ids[start + count] = id;
        if (++count == capacity) {
            thresholds[stream] = keep_largest<T>(values + start, ids + start, count, k, keys);
            count = k;
        }
    }

    // Leaves the k largest of a stream, or all where it had fewer, with weights exp((value - largest) / temperature) in
    // place of their values. Returns how many they are; `total` is the sum of the weights.
    std::int64_t finish(std::int64_t stream, T temperature, double* total) const {
        const std::int64_t start = stream * capacity, kept = counts[stream] < k ? counts[stream] : k;
        T* value = values + start;
        if (counts[stream] > k) keep_largest<T>(value, ids + start, counts[stream], k, keys);
        T most = value[0];
        for (std::int64_t i = 1; i < kept; ++i) most = value[i] > most ? value[i] : most;
        for (std::int64_t i = 0; i < kept; i += kWidth<T>)
            store<T>(value + i, exp<T>((load<T>(value + i) - most) / temperature));
        *total = 0;
        for (std::int64_t i = 0; i < kept; ++i) *total += static_cast<double>(value[i]);
        return kept;
    }
};

// Working memory laid out from an address; from 0, `end` tells how much it takes.
struct Layout {
    std::uintptr_t end;

    template <class U>
    U* take(std::int64_t count) {
        U* start = reinterpret_cast<U*>(end);
        end += (static_cast<std::uintptr_t>(count) * sizeof(U) + 63) / 64 * 64;
        return start;
    }

    template <class T>
    Candidates<T> candidates(std::int64_t streams, std::int64_t k, std::int64_t capacity) {
        Candidates<T> c{k, capacity, nullptr, nullptr, nullptr, nullptr, nullptr};
        c.thresholds = take<T>(streams);
        c.values = take<T>(streams * capacity);
        c.ids = take<std::int64_t>(streams * capacity);
        c.counts = take<std::int64_t>(streams);
        c.keys = take<typename OrderedKey<T>::scalar>(capacity);
        return c;
    }
};

}  // namespace fastssl::FASTSSL_ISA
