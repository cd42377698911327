// Rows written to memory once, with stores that go past the caches where the caller has found that to pay (pages.h).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dtype.h"
#include "simd.h"

namespace fastssl::FASTSSL_ISA {

// One vector, to an address that is a multiple of its size. Seen by other threads after stream_fence().
inline void stream(void* to, Vec<float> v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(static_cast<float*>(to), v);
#elif defined(__AVX2__)
    _mm256_stream_ps(static_cast<float*>(to), v);
#elif defined(__x86_64__)
    _mm_stream_ps(static_cast<float*>(to), v);
#else
    std::memcpy(to, &v, sizeof v);
#endif
}

inline void stream_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Bytes that lie in the nearest cache; whole vectors past the caches, the ends of an unaligned row through them.
inline void stream_bytes(void* to, const void* from, std::int64_t bytes) {
    char* out = static_cast<char*>(to);
    const char* in = static_cast<const char*>(from);
    const std::int64_t to_boundary = -reinterpret_cast<std::intptr_t>(to) & (kVectorBytes - 1);
    const std::int64_t head = to_boundary < bytes ? to_boundary : bytes;
    if (head > 0) std::memcpy(out, in, static_cast<std::size_t>(head));
    std::int64_t i = head;
    for (; i + kVectorBytes <= bytes; i += kVectorBytes) stream(out + i, load(reinterpret_cast<const float*>(in + i)));
    if (i < bytes) std::memcpy(out + i, in + i, static_cast<std::size_t>(bytes - i));
}

// The bytes of a row, which do not overlap those they go to.
inline void write_bytes(void* out, const void* in, std::int64_t bytes, bool past_caches) {
    if (past_caches)
        stream_bytes(out, in, bytes);
    else if (bytes > 0)
        std::memcpy(out, in, static_cast<std::size_t>(bytes));
}

// out = in rounded to T, for a row of `count` numbers of the type computed in. One copy serves all callers: the loops are
// what takes time to compile.
template <class T, class A>
[[gnu::noinline]] void write_row(T* out, const A* in, std::int64_t count, bool past_caches) {
    constexpr std::int64_t kChunk = 2048 / static_cast<std::int64_t>(sizeof(T));
    if constexpr (sizeof(T) == sizeof(A)) {
        write_bytes(out, in, count * static_cast<std::int64_t>(sizeof(T)), past_caches);
    } else {
        alignas(64) T chunk[kChunk];
        for (std::int64_t start = 0; start < count; start += kChunk) {
            const std::int64_t size = count - start < kChunk ? count - start : kChunk;
#pragma GCC ivdep
            for (std::int64_t i = 0; i < size; ++i) narrow(in[start + i], chunk[i]);
            write_bytes(out + start, chunk, size * static_cast<std::int64_t>(sizeof(T)), past_caches);
        }
    }
}

// A row of zeros, by the same stores.
template <class T>
inline void write_zeros(T* out, std::int64_t count, bool past_caches) {
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    char* to = reinterpret_cast<char*>(out);
    const std::int64_t to_boundary = -reinterpret_cast<std::intptr_t>(to) & (kVectorBytes - 1);
    std::int64_t i = past_caches && to_boundary < bytes ? to_boundary : bytes;
    if (i > 0) std::memset(to, 0, static_cast<std::size_t>(i));
    for (; i + kVectorBytes <= bytes; i += kVectorBytes) stream(to + i, Vec<float>{});
    if (i < bytes) std::memset(to + i, 0, static_cast<std::size_t>(bytes - i));
}

}  // namespace fastssl::FASTSSL_ISA
