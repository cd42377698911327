// Changes of colour, on vectors of pixels with values in [0, 255]: torchvision's, in float.
#pragma once

#include "simd.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr float kWhite = 255.0f;

enum class Step : std::int64_t { brightness = 0, contrast = 1, saturation = 2, hue = 3 };

inline Vec<float> clamp(Vec<float> x, float most) {
    return vmax(Vec<float>{}, vmin(broadcast<float>(most), x));
}

inline Vec<float> luma(const Vec<float> (&c)[3]) { return c[0] * 0.2989f + c[1] * 0.587f + c[2] * 0.114f; }

// c = factor c + (1 - factor) other
inline void blend(Vec<float> (&c)[3], Vec<float> other, float factor) {
    other *= 1.0f - factor;
#pragma GCC unroll 4
    for (int i = 0; i < 3; ++i) c[i] = clamp(c[i] * factor + other, kWhite);
}

// Adds to the hue of HSV. With it in turns, channel i is value - chroma clamp(2 - 6 d, 0, 1), where d is how far the hue
// is, on the circle, from the colour opposite to that channel's.
inline void turn_hue(Vec<float> (&c)[3], float turn) {
    constexpr float opposite[3] = {-3.0f / 6.0f, 1.0f / 6.0f, -1.0f / 6.0f};  // less cyan, magenta, yellow
    constexpr float rounder = ExpConstants<float>::rounder;                   // adding it rounds to an integer
    const Vec<float> value = vmax(vmax(c[0], c[1]), c[2]), chroma = value - vmin(vmin(c[0], c[1]), c[2]);
    const Vec<float> share = (1.0f / 6.0f) / (chroma > 0.0f ? chroma : broadcast<float>(1.0f));  // of greys: any
    const Vec<float> of_red = (c[1] - c[2]) * share, of_green = (c[2] - c[0]) * share + 2.0f / 6.0f;
    const Vec<float> of_blue = (c[0] - c[1]) * share + 4.0f / 6.0f;
    const Vec<float> hue = (value == c[0] ? of_red : (value == c[1] ? of_green : of_blue)) + turn;
#pragma GCC unroll 4
    for (int i = 0; i < 3; ++i) {
        const Vec<float> turns = hue + opposite[i], off = turns - ((turns + rounder) - rounder);
        c[i] = value - chroma * clamp(2.0f - vmax(off, -off) * 6.0f, 1.0f);
    }
}

// Applies change(Vec<float>[3]) to every pixel of three rows of whole vectors, `plane` apart.
template <class Change>
inline void change_row(float* row, std::int64_t plane, std::int64_t width, Change change) {
    for (std::int64_t x = 0; x < width; x += kWidth<float>) {
        Vec<float> c[3];
#pragma GCC unroll 4
        for (int i = 0; i < 3; ++i) c[i] = load<float>(row + i * plane + x);
        change(c);
#pragma GCC unroll 4
        for (int i = 0; i < 3; ++i) store<float>(row + i * plane + x, c[i]);
    }
}

// One step of the jitter. `mean` is the mean luma of the image, which contrast alone asks for.
inline void jitter_row(Step step, float factor, float mean, float* row, std::int64_t plane, std::int64_t width) {
    using Pixels = Vec<float>(&)[3];
    switch (step) {
        case Step::brightness: return change_row(row, plane, width, [=](Pixels c) { blend(c, Vec<float>{}, factor); });
        case Step::contrast:
            return change_row(row, plane, width, [=](Pixels c) { blend(c, broadcast<float>(mean), factor); });
        case Step::saturation: return change_row(row, plane, width, [=](Pixels c) { blend(c, luma(c), factor); });
        case Step::hue: return change_row(row, plane, width, [=](Pixels c) { turn_hue(c, factor); });
    }
}

inline void drop_colour(float* row, std::int64_t plane, std::int64_t width) {
    change_row(row, plane, width, [](Vec<float>(&c)[3]) { c[0] = c[1] = c[2] = luma(c); });
}

inline void clamp_row(float* row, std::int64_t plane, std::int64_t width) {
    change_row(row, plane, width, [](Vec<float>(&c)[3]) {
#pragma GCC unroll 4
        for (int i = 0; i < 3; ++i) c[i] = clamp(c[i], kWhite);
    });
}

// The sum of the lumas of a row.
inline double sum_luma(const float* row, std::int64_t plane, std::int64_t width) {
    Vec<float> total = {};
    for (std::int64_t x = 0; x < width; x += kWidth<float>) {
        const Vec<float> c[3] = {load<float>(row + x), load<float>(row + plane + x), load<float>(row + 2 * plane + x)};
        total += luma(c);
    }
    return static_cast<double>(sum<float>(total));
}

}  // namespace
}  // namespace fastssl::FASTSSL_ISA
