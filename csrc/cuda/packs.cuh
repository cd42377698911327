// Rows of elements that threads move: kPack elements at once, in accesses of 16 bytes, or one where the addresses forbid it.
#pragma once

#include <cstring>
#include <initializer_list>

#include "common.cuh"

namespace fastssl::cuda {

// What sums over elements of T are kept in.
template <class T>
using Accumulator = decltype(widen(T{}));

// N elements from `p`, widened. N is kPack, and `p` a multiple of 16 bytes; or N is 1.
template <int N, class T, class A>
__device__ inline void load(const T* p, A (&values)[N]) {
    static_assert(N == kPack || N == 1);
    if constexpr (N == kPack) {
        const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p);
#pragma unroll
        for (int k = 0; k < kPack; ++k) values[k] = static_cast<A>(widen(pack.values[k]));
    } else {
        values[0] = static_cast<A>(widen(*p));
    }
}

template <class T, class A>
__device__ inline Pack<T> narrowed(const A (&values)[kPack]) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.values[k] = narrow<T>(values[k]);
    return pack;
}

// Stores them in the GPU's memory, and in no other, rounded to T. 16 bytes go by an instruction of their own, for ptxas may split a plain
// assignment of 16-bit numbers; of wider ones it makes several of 16.
template <int N, class T, class A>
__device__ inline void store(T* p, const A (&values)[N]) {
    if constexpr (N == kPack) {
        const Pack<T> pack = narrowed<T>(values);
        if constexpr (sizeof(pack) == sizeof(int4)) {
            int4 whole;
            memcpy(&whole, &pack, sizeof(pack));
            __stwb(reinterpret_cast<int4*>(p), whole);
        } else {
            *reinterpret_cast<Pack<T>*>(p) = pack;
        }
    } else {
        *p = narrow<T>(values[0]);
    }
}

// Likewise in the block's shared memory.
template <int N, class T, class A>
__device__ inline void store_shared(T* p, const A (&values)[N]) {
    if constexpr (N == kPack)
        *reinterpret_cast<Pack<T>*>(p) = narrowed<T>(values);
    else
        *p = narrow<T>(values[0]);
}

template <int N, class A>
__device__ inline void fill(A (&values)[N], A value) {
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] = value;
}

template <int N, class A>
__device__ inline void add(A (&sum)[N], const A (&values)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += values[k];
}

// What a row gets that an index outside its range asks for: nothing can be raised without waiting for the GPU.
template <class A>
__device__ inline A not_a_number() { return static_cast<A>(__uint_as_float(0x7fc00000u)); }

__host__ __device__ inline bool on_16_bytes(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// ---- on the host: whether and how rows are moved in packs ----

// Whether every row of every array, without gaps or null, begins at a multiple of 16 bytes and ends with a pack.
inline bool packable(std::int64_t columns, std::initializer_list<const void*> arrays) {
    for (const void* array : arrays)
        if (!on_16_bytes(array)) return false;
    return columns % kPack == 0;
}

// Rows `stride` elements apart, the first one at `p`, or no rows where that is null.
inline bool rows_on_16_bytes(const void* p, std::int64_t stride, std::size_t element_bytes) {
    return on_16_bytes(p) && stride * static_cast<std::int64_t>(element_bytes) % 16 == 0;
}

__host__ __device__ inline std::int64_t parts(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }

// Threads that share a row of `width` elements, each moving `elements` of them at once: a power of two, at most a warp.
inline int lanes_of(std::int64_t width, int elements) {
    int lanes = 1;
    while (lanes < 32 && lanes * elements < width) lanes *= 2;
    return lanes;
}

}  // namespace fastssl::cuda
