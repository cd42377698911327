// Matrices without gaps whose rows are shared by neighbouring threads, and accesses of 16 bytes to them.
#pragma once

#include <type_traits>

#include "packs.cuh"

namespace fastssl::cuda {

struct Matrix {
    const void* data;
    DType dtype;
    std::int64_t rows, columns;
};

// The kCount columns that one of `lanes` threads takes of those from `first` on. Where rows are made of whole packs, a
// thread takes kPack adjacent columns at a time, else every lanes-th: either way neighbours touch what is adjacent.
template <bool kPacked, int kCount = kPack>
struct Columns {
    static_assert(kCount % kPack == 0, "whole packs");
    std::int64_t first, end;  // end: the length of a row
    int lane, lanes;

    __device__ std::int64_t operator[](int k) const {
        return first + (kPacked ? (k / kPack * lanes + lane) * kPack + k % kPack : k * lanes + lane);
    }
    __device__ bool has(int k) const { return (*this)[kPacked ? k / kPack * kPack : k] < end; }
};

// A row's columns, widened; `missing` beyond its end.
template <class T, class S, bool kPacked, int kCount>
__device__ void load(const S* row, const Columns<kPacked, kCount>& at, T missing, T (&out)[kCount]) {
#pragma unroll
    for (int first = 0; first < kCount; first += kPack) {
        if constexpr (kPacked) {
            if (at.has(first)) {
                T pack[kPack];
                load(row + at[first], pack);
#pragma unroll
                for (int k = 0; k < kPack; ++k) out[first + k] = pack[k];
                continue;
            }
        }
#pragma unroll
        for (int k = first; k < first + kPack; ++k)
            out[k] = !kPacked && at.has(k) ? static_cast<T>(widen(row[at[k]])) : missing;
    }
}

template <class T, class S, bool kPacked>
__device__ void store(S* row, const Columns<kPacked>& at, const T (&values)[kPack]) {
    if constexpr (kPacked) {
        if (at.has(0)) store(row + at[0], values);
    } else {
#pragma unroll
        for (int k = 0; k < kPack; ++k)
            if (at.has(k)) row[at[k]] = narrow<S>(values[k]);
    }
}

// with_type where sums are kept in T: of doubles in double alone.
template <class T, class F>
__device__ void with_summand(DType dtype, F f) {
    with_type(dtype, [&](auto type) {
        if constexpr (!std::is_same_v<decltype(type), double> || std::is_same_v<T, double>) f(type);
    });
}

}  // namespace fastssl::cuda
