// Changes of colour of rows, by the formulas of ../shared/views.h on vectors of pixels.
#pragma once

#include "../shared/views.h"
#include "simd.h"

namespace fastssl::FASTSSL_ISA {
namespace {

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
        for (int i = 0; i < 3; ++i) c[i] = within(c[i], kBrightest);
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
