// Antialiased resizing of a crop of bytes to planes of float: rows first, straight from the bytes, then columns.
//
// A vector holds a pixel of kLanes output rows, four lanes each (red, green, blue and one that nobody reads), so that a
// column's weight is one number for all of it and nothing is gathered.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../shared/views.h"
#include "simd.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr int kLanes = kWidth<float> / 4;

// A resized line: output i is sum over k < taps of weights[i * taps + k] * in[first[i] + k].
struct Line {
    std::int64_t taps;
    const std::int64_t* first;
    const float* weights;
};

inline std::int64_t most_taps(std::int64_t extent, std::int64_t size, bool bicubic) {
    const std::int64_t most = static_cast<std::int64_t>(2 * reach(extent, size, bicubic)) + 2;
    return most < extent ? most : extent;
}

// Output pixel i of `extent` pixels resized to `size`: its first input pixel, returned, and the weights of those from
// there on, `room` of them, the last ones 0; `count` of them are not.
inline std::int64_t weigh(std::int64_t i, std::int64_t extent, std::int64_t size, bool bicubic, std::int64_t room,
                          float* weights, std::int64_t& count) {
    const Span span = span_of(i, extent, size, bicubic);
    double total = 0;
    for (std::int64_t j = span.first; j < span.last; ++j) total += filter(span.distance(j), bicubic);
    const double share = 1 / total;
    count = span.last - span.first;
    for (std::int64_t k = 0; k < room; ++k)
        weights[k] = k < count ? static_cast<float>(filter(span.distance(span.first + k), bicubic) * share) : 0.0f;
    while (count > 1 && weights[count - 1] == 0.0f) --count;
    return span.first;
}

// All output pixels of a line, in the other direction if `reversed`, with as few taps as do for each of them. `first`
// and `weights` have room for `padded` >= size outputs; those beyond are 0.
inline Line make_line(std::int64_t extent, std::int64_t size, std::int64_t padded, bool bicubic, bool reversed,
                      std::int64_t* first, float* weights) {
    const std::int64_t room = most_taps(extent, size, bicubic);
    std::int64_t taps = 1;
    for (std::int64_t i = 0; i < size; ++i) {
        const std::int64_t at = reversed ? size - 1 - i : i;
        std::int64_t count;
        first[at] = weigh(i, extent, size, bicubic, room, weights + at * room, count);
        taps = count > taps ? count : taps;
    }
    for (std::int64_t i = 0; i < size; ++i) {
        float* from = weights + i * room;
        const std::int64_t beyond = first[i] + taps - extent;
        if (beyond > 0) {  // the taps that are 0 come first
            for (std::int64_t k = taps - 1; k >= 0; --k) from[k] = k >= beyond ? from[k - beyond] : 0.0f;
            first[i] -= beyond;
        }
        std::memmove(weights + i * taps, from, static_cast<std::size_t>(taps) * sizeof(float));
    }
    for (std::int64_t i = size; i < padded; ++i) first[i] = 0;
    for (std::int64_t k = size * taps; k < padded * taps; ++k) weights[k] = 0.0f;
    return {taps, first, weights};
}

// As many bytes as a vector has lanes. By hand: g++ 12 converts them one by one.
inline Vec<float> load_bytes(const std::uint8_t* p) {
#if defined(__AVX512F__)
    constexpr __mmask16 kAll = 0xffff;  // g++ warns of the unmasked forms' own undefined operands
    __m128i bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return _mm512_maskz_cvtepi32_ps(kAll, _mm512_maskz_cvtepu8_epi32(kAll, bytes));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(__SSE2__)
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    const __m128i zero = _mm_setzero_si128(), words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero);
    return _mm_cvtepi32_ps(_mm_unpacklo_epi16(words, zero));
#else
    typedef std::uint8_t Bytes __attribute__((vector_size(kWidth<float>)));
    Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, Vec<float>);
#endif
}

// out[x] = sum over k of weights[k] * in[k * step + x], x < count.
inline void blend_rows(const std::uint8_t* in, std::int64_t step, const float* weights, std::int64_t taps,
                       std::int64_t count, float* out) {
    const auto vector = [=](std::int64_t x) {
        Vec<float> sum = load_bytes(in + x) * weights[0];
        for (std::int64_t k = 1; k < taps; ++k) sum += load_bytes(in + k * step + x) * weights[k];
        store<float>(out + x, sum);
    };
    std::int64_t x = 0;
    for (; x + kWidth<float> <= count; x += kWidth<float>) vector(x);
    if (x < count && x > 0) vector(count - kWidth<float>);  // again, in part: nothing is read beyond the row
    if (x == 0)
        for (; x < count; ++x) {
            float sum = 0;
            for (std::int64_t k = 0; k < taps; ++k) sum += static_cast<float>(in[k * step + x]) * weights[k];
            out[x] = sum;
        }
}

// In each four lanes: vector i becomes lane i of the four vectors.
inline void transpose_fours(Vec<float> (&v)[4]) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTSSL_SHUFFLES
#endif
#endif
#if defined(FASTSSL_SHUFFLES)
    constexpr int n = kWidth<float>;
#if defined(__AVX512F__)
#define FASTSSL_FOURS(a, b, i, j, k, l)                                                                            \
    __builtin_shufflevector(a, b, i, j, k, l, (i) + 4, (j) + 4, (k) + 4, (l) + 4, (i) + 8, (j) + 8, (k) + 8, (l) + 8, \
                            (i) + 12, (j) + 12, (k) + 12, (l) + 12)
#elif defined(__AVX2__)
#define FASTSSL_FOURS(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l, (i) + 4, (j) + 4, (k) + 4, (l) + 4)
#else
#define FASTSSL_FOURS(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#endif
    const Vec<float> low01 = FASTSSL_FOURS(v[0], v[1], 0, n, 1, n + 1), high01 = FASTSSL_FOURS(v[0], v[1], 2, n + 2, 3, n + 3);
    const Vec<float> low23 = FASTSSL_FOURS(v[2], v[3], 0, n, 1, n + 1), high23 = FASTSSL_FOURS(v[2], v[3], 2, n + 2, 3, n + 3);
    v[0] = FASTSSL_FOURS(low01, low23, 0, 1, n, n + 1);
    v[1] = FASTSSL_FOURS(low01, low23, 2, 3, n + 2, n + 3);
    v[2] = FASTSSL_FOURS(high01, high23, 0, 1, n, n + 1);
    v[3] = FASTSSL_FOURS(high01, high23, 2, 3, n + 2, n + 3);
#undef FASTSSL_FOURS
#undef FASTSSL_SHUFFLES
#else
    float in[4][kWidth<float>], out[4][kWidth<float>];
    std::memcpy(in, v, sizeof in);
    for (int four = 0; four < kWidth<float>; four += 4)
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) out[j][four + i] = in[i][four + j];
    std::memcpy(v, out, sizeof out);
#endif
}

// Four lanes of a vector to memory.
inline void store_four(float* to, const Vec<float>& v, int four) {
    std::memcpy(to, reinterpret_cast<const char*>(&v) + 16 * four, 16);
}

// Rows [y, y + count), count <= kLanes, of the crop resized in height, as vectors of pixels. `line` has room for three
// rows of `room` >= width + kWidth numbers, `pixels` for as many vectors as a row.
inline void blend_to_pixels(const Crop& crop, const Line& rows, std::int64_t y, std::int64_t count, std::int64_t room,
                            float* line, float* pixels) {
    for (std::int64_t r = 0; r < count; ++r) {
        const std::uint8_t* in = crop.pixels + rows.first[y + r] * crop.row_step;
        const float* weights = rows.weights + (y + r) * rows.taps;
        if (crop.interleaved()) {
            blend_rows(in, crop.row_step, weights, rows.taps, 3 * crop.width, line);
            float* to = pixels + 4 * r;
            for (std::int64_t x = 0; x < crop.width; ++x) std::memcpy(to + x * kWidth<float>, line + 3 * x, 16);
            continue;
        }
        for (std::int64_t c = 0; c < 3; ++c)
            blend_rows(in + c * crop.channel_step, crop.row_step, weights, rows.taps, crop.width, line + c * room);
        for (std::int64_t x = 0; x < crop.width; x += kWidth<float>) {
            Vec<float> v[4] = {load<float>(line + x), load<float>(line + room + x), load<float>(line + 2 * room + x), {}};
            transpose_fours(v);
#pragma GCC unroll 4
            for (int four = 0; four < kLanes; ++four)
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) store_four(pixels + (x + 4 * four + j) * kWidth<float> + 4 * r, v[j], four);
        }
    }
}

// Pixels resized in width, `padded` of them, to kLanes rows of three planes. Taps: how many, or 0 for those of the line.
template <int Taps>
inline void resample_columns(const float* pixels, const Line& columns, std::int64_t padded, std::int64_t row,
                             std::int64_t plane, float* out) {
    const std::int64_t taps = Taps > 0 ? Taps : columns.taps;
    for (std::int64_t x = 0; x < padded; x += 4) {
        Vec<float> v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const float* in = pixels + columns.first[x + j] * kWidth<float>;
            const float* weights = columns.weights + (x + j) * taps;
            v[j] = load<float>(in) * weights[0];
            for (std::int64_t k = 1; k < taps; ++k) v[j] += load<float>(in + k * kWidth<float>) * weights[k];
        }
        transpose_fours(v);
#pragma GCC unroll 4
        for (int c = 0; c < 3; ++c)
#pragma GCC unroll 4
            for (int four = 0; four < kLanes; ++four) store_four(out + c * plane + four * row + x, v[c], four);
    }
}

inline void to_planes(const float* pixels, const Line& columns, std::int64_t padded, std::int64_t row,
                      std::int64_t plane, float* out) {
    switch (columns.taps) {
        case 1: return resample_columns<1>(pixels, columns, padded, row, plane, out);
        case 2: return resample_columns<2>(pixels, columns, padded, row, plane, out);
        case 3: return resample_columns<3>(pixels, columns, padded, row, plane, out);
        case 4: return resample_columns<4>(pixels, columns, padded, row, plane, out);
        default: return resample_columns<0>(pixels, columns, padded, row, plane, out);
    }
}

}  // namespace
}  // namespace fastssl::FASTSSL_ISA
