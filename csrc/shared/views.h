// A view of an image: what is asked for, and the formulas of its steps, which the C++ and the CUDA kernels share.
//
// torchvision's v2 functions on floating-point images, with values in [0, 255]. V is a float, or on a CPU a vector of
// floats, whose comparisons choose lane by lane. Reference: fastssl/ops/augment.py.
#pragma once

#include <math.h>

#include <cstdint>

#include "shared.h"

namespace fastssl {
namespace {  // each object has its own: the C++ kernels' are compiled for several instruction sets

// ---- what is asked for: fastssl/ops/_views.py tells of the arrays ----

enum class Step : std::int64_t { brightness = 0, contrast = 1, saturation = 2, hue = 3 };

// A part of an image: where a pixel's bytes lie.
struct Crop {
    const std::uint8_t* pixels;
    std::int64_t height, width, channel_step, row_step, column_step;

    FASTSSL_SHARED bool interleaved() const { return column_step == 3 && channel_step == 1; }
};

// What is done to one image. Steps of colour that change nothing are left out.
struct Sample {
    Crop crop;
    bool reversed_rows, reversed_columns;
    int steps;
    Step step[4];
    float factor[4];
    bool gray, solarize;
    float sigma;

    FASTSSL_SHARED int before_contrast() const {
        int i = 0;
        while (i < steps && step[i] != Step::contrast) ++i;
        return i;
    }
};

// Images and one view's parameters of each. `places`: (n, 3) offset, height and width of packed images, or null.
struct Batch {
    const std::uint8_t* images;
    const std::int64_t* places;
    std::int64_t image_step, channel_step, row_step, column_step;
    const std::int64_t* crop;
    const bool* flip;
    const std::int64_t* rot90;
    const std::int64_t* order;
    const float* factors;
    const bool* gray;
    const float* sigma;
    const bool* solarize;

    FASTSSL_SHARED Crop cropped(std::int64_t i) const {
        const std::int64_t* box = crop + 4 * i;
        const std::int64_t row = places != nullptr ? 3 * places[3 * i + 2] : row_step;
        const std::uint8_t* image = images + (places != nullptr ? places[3 * i] : i * image_step);
        return {image + box[0] * row + box[1] * column_step, box[2], box[3], channel_step, row, column_step};
    }

    FASTSSL_SHARED void read(std::int64_t i, Sample& s) const {
        s.crop = cropped(i);
        const std::int64_t turns = rot90[i];
        const bool f = flip[i];
        // Turned by a quarter, rows of the view are columns of the crop, and one of the two is read backwards.
        s.reversed_rows = turns == 0 ? false : turns == 1 ? !f : turns == 2 ? true : f;
        s.reversed_columns = turns == 0 ? f : turns == 1 ? false : turns == 2 ? !f : true;
        if (turns % 2 == 1)
            s.crop = {s.crop.pixels, s.crop.width, s.crop.height, s.crop.channel_step, s.crop.column_step, s.crop.row_step};
        s.steps = 0;
        for (int place = 0; place < 4; ++place) {
            const std::int64_t step = order[4 * i + place];
            const float factor = factors[4 * i + step];
            if (factor == (step == 3 ? 0.0f : 1.0f)) continue;
            s.step[s.steps] = static_cast<Step>(step);
            s.factor[s.steps++] = factor;
        }
        s.gray = gray[i];
        s.sigma = sigma[i];
        s.solarize = solarize[i];
    }
};

// ---- resizing ----

// The triangle, or Keys' cubic with a = -0.5: torch's and Pillow's filters.
template <class T>
FASTSSL_SHARED inline T filter(T x, bool bicubic) {
    x = x < 0 ? -x : x;
    if (!bicubic) return x < 1 ? 1 - x : 0;
    if (x < 1) return (T(1.5) * x - T(2.5)) * x * x + 1;
    return x < 2 ? ((T(2.5) - T(0.5) * x) * x - 4) * x + 2 : 0;
}

// How far from its centre an output pixel reaches, in input pixels.
FASTSSL_SHARED inline double reach(std::int64_t extent, std::int64_t size, bool bicubic) {
    const double scale = static_cast<double>(extent) / static_cast<double>(size);
    return (bicubic ? 2.0 : 1.0) * (scale > 1 ? scale : 1.0);
}

// The input pixels of an output pixel, [first, last); pixel j weighs filter(distance(j)), and all together 1.
struct Span {
    std::int64_t first, last;
    double centre, shrink;

    FASTSSL_SHARED double distance(std::int64_t j) const { return (j + 0.5 - centre) * shrink; }
};

// Those of output pixel i of `extent` pixels resized to `size`.
FASTSSL_SHARED inline Span span_of(std::int64_t i, std::int64_t extent, std::int64_t size, bool bicubic) {
    const double scale = static_cast<double>(extent) / static_cast<double>(size), centre = (i + 0.5) * scale;
    const double support = reach(extent, size, bicubic), shrink = scale > 1 ? 1 / scale : 1;
    const double from = centre - support + 0.5, to = centre + support + 0.5;
    return {from > 0 ? static_cast<std::int64_t>(from) : 0,
            to < static_cast<double>(extent) ? static_cast<std::int64_t>(to) : extent, centre, shrink};
}

// ---- colour ----

constexpr float kBrightest = 255.0f;

template <class V>
FASTSSL_SHARED inline V least(V a, V b) { return a < b ? a : b; }
template <class V>
FASTSSL_SHARED inline V most(V a, V b) { return a > b ? a : b; }
// one instruction of a GPU
FASTSSL_SHARED inline float least(float a, float b) { return ::fminf(a, b); }
FASTSSL_SHARED inline float most(float a, float b) { return ::fmaxf(a, b); }

// Cut off at 0 and `end`.
template <class V>
FASTSSL_SHARED inline V within(V x, float end) {
    const V zero = {};
    return most(zero, least(V(zero + end), x));
}

template <class V>
FASTSSL_SHARED inline V luma(const V (&c)[3]) { return c[0] * 0.2989f + c[1] * 0.587f + c[2] * 0.114f; }

// c = factor c + (1 - factor) other
template <class V>
FASTSSL_SHARED inline void blend(V (&c)[3], V other, float factor) {
    other *= 1.0f - factor;
    FASTSSL_UNROLL
    for (int i = 0; i < 3; ++i) c[i] = within(V(c[i] * factor + other), kBrightest);
}

// Adds to the hue of HSV. With it in turns, channel i is value - chroma clamp(2 - 6 d, 0, 1), where d is how far the hue
// is, on the circle, from the colour opposite to that channel's.
template <class V>
FASTSSL_SHARED inline void turn_hue(V (&c)[3], float turn) {
    constexpr float opposite[3] = {-3.0f / 6.0f, 1.0f / 6.0f, -1.0f / 6.0f};  // less cyan, magenta, yellow
    constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const V zero = {}, one = zero + 1.0f;
    const V value = most(most(c[0], c[1]), c[2]), chroma = value - least(least(c[0], c[1]), c[2]);
    const V share = (1.0f / 6.0f) / (chroma > 0.0f ? chroma : one);  // of greys: any
    const V of_red = (c[1] - c[2]) * share, of_green = (c[2] - c[0]) * share + 2.0f / 6.0f;
    const V of_blue = (c[0] - c[1]) * share + 4.0f / 6.0f;
    const V hue = (value == c[0] ? of_red : (value == c[1] ? of_green : of_blue)) + turn;
    FASTSSL_UNROLL
    for (int i = 0; i < 3; ++i) {
        const V turns = hue + opposite[i], off = turns - ((turns + rounder) - rounder);
        c[i] = value - chroma * within(V(2.0f - most(off, V(-off)) * 6.0f), 1.0f);
    }
}

// Inverts values from half of the range on.
template <class V>
FASTSSL_SHARED inline V solarized(V x) { return x >= 0.5f * kBrightest ? kBrightest - x : x; }

// ---- blur ----

// How far the kernel reaches at most; `blur_radius` in Python.
constexpr std::int64_t blur_radius(std::int64_t size) {
    const std::int64_t tenth = size / 20 > 1 ? size / 20 : 1;
    return tenth < size - 1 ? tenth : size - 1;
}

// How far it reaches: as far as float can tell its taps from 0 beside the largest, at most `radius`.
FASTSSL_SHARED inline std::int64_t blur_reach(float sigma, std::int64_t radius) {
    constexpr double kReach = 5.7;  // e^(-5.7^2 / 2) < 2^-23
    const double reach = kReach * static_cast<double>(sigma);
    return reach < static_cast<double>(radius) ? static_cast<std::int64_t>(reach) : radius;
}

FASTSSL_SHARED inline std::int64_t mirrored(std::int64_t x, std::int64_t size) {
    return x < 0 ? -x : x >= size ? 2 * (size - 1) - x : x;
}

}  // namespace
}  // namespace fastssl
