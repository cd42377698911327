// sRGB and CIELAB (D65, 2 degree observer), lane by lane, and the walk over the pixels of (images, 3, plane) tensors.
//
// The constants are those of scikit-image. Values outside [0, 1] follow the same formulas. Reference: fastssl/ops/_color.py.
#pragma once

#include "dtype.h"
#include "roots.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {

constexpr double kXyzFromRgb[3][3] = {
    {0.412453, 0.357580, 0.180423}, {0.212671, 0.715160, 0.072169}, {0.019334, 0.119193, 0.950227}};
constexpr double kRgbFromXyz[3][3] = {{3.240481343200526, -1.5371515162713185, -0.4985363261688878},
                                      {-0.9692549499965682, 1.8759900014898907, 0.04155592655829284},
                                      {0.05564663913517716, -0.20404133836651123, 1.0573110696453443}};
constexpr double kWhite[3] = {0.95047, 1.0, 1.08883};

template <class T>
inline Vec<T> linear_from_srgb(Vec<T> x) {
    const Vec<T> u = (x + T(0.055)) * T(1 / 1.055);
    const Vec<T> v = u * inverse_root<5, T>(u);
    return x > T(0.04045) ? v * v * v : x * T(1 / 12.92);  // u^2.4 = (u u^(-1/5))^3
}

template <class T>
inline Vec<T> srgb_from_linear(Vec<T> x) {
    const Vec<T> c = cube_root<T>(x), y = inverse_root<4, T>(c), v = c * y;
    return x > T(0.0031308) ? v * v * (y * T(1.055)) - T(0.055) : x * T(12.92);
}

template <class T>
inline Vec<T> lab_curve(Vec<T> t) {
    const Vec<T> root = cube_root<T>(t);
    return t > T(0.008856) ? root : t * T(7.787) + T(16.0 / 116.0);
}

template <class T>
inline Vec<T> lab_curve_inverse(Vec<T> f) {
    return f > T(0.2068966) ? f * f * f : (f - T(16.0 / 116.0)) * T(1 / 7.787);
}

// `count` lanes of `in`, and zeros; `out` is written in `count` lanes.
template <class T, class S>
inline Vec<T> load_some(const S* in, std::int64_t count) {
    T lanes[kWidth<T>];
    if (count >= kWidth<T>)
        for (int i = 0; i < kWidth<T>; ++i) lanes[i] = static_cast<T>(widen(in[i]));
    else
        for (int i = 0; i < kWidth<T>; ++i) lanes[i] = i < count ? static_cast<T>(widen(in[i])) : T(0);
    return load<T>(lanes);
}

template <class T, class S>
inline void store_some(S* out, Vec<T> v, std::int64_t count) {
    T lanes[kWidth<T>];
    store<T>(lanes, v);
    if (count >= kWidth<T>)
        for (int i = 0; i < kWidth<T>; ++i) narrow(lanes[i], out[i]);
    else
        for (std::int64_t i = 0; i < count; ++i) narrow(lanes[i], out[i]);
}

constexpr std::int64_t kPixels = 2048;  // a chunk, which one thread takes

// Calls visit(image, first pixel, pixels) for chunks of every image; chunks do not depend on the number of threads.
template <class Visit>
inline void for_each_chunk(std::int64_t images, std::int64_t plane, int threads, Visit visit) {
    const std::int64_t chunks = (plane + kPixels - 1) / kPixels;
#pragma omp parallel for num_threads(at_most(threads, images * chunks)) schedule(static)
    for (std::int64_t i = 0; i < images * chunks; ++i) {
        const std::int64_t first = i % chunks * kPixels, left = plane - first;
        visit(i / chunks, first, left < kPixels ? left : kPixels);
    }
}

// Applies convert(Vec<T>[3]) to the three channels of every pixel.
template <class T, class S, class Convert>
inline void map_pixels(const S* in, S* out, std::int64_t images, std::int64_t plane, int threads, Convert convert) {
    for_each_chunk(images, plane, threads, [&](std::int64_t image, std::int64_t first, std::int64_t count) {
        const S* from = in + image * 3 * plane + first;
        S* to = out + image * 3 * plane + first;
        for (std::int64_t i = 0; i < count; i += kWidth<T>) {
            Vec<T> channels[3];
            for (int c = 0; c < 3; ++c) channels[c] = load_some<T>(from + c * plane + i, count - i);
            convert(channels);
            for (int c = 0; c < 3; ++c) store_some<T>(to + c * plane + i, channels[c], count - i);
        }
    });
}

}  // namespace fastssl::FASTSSL_ISA
