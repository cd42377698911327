// sRGB and CIELAB (D65, 2 degree observer) and the soft assignment of chroma: what the C++ and the CUDA kernels share.
//
// A value V is a float or double, or on a CPU a vector of T's, whose comparisons choose lane by lane, as wide as the
// instruction set has them: no two sets share a function. Roots has x^(-1/N) of positive V, which may mean nothing for
// others: it is computed for all and then not chosen. The constants are those of scikit-image; values outside [0, 1]
// follow the same formulas. Reference: fastssl/ops/_color.py.
#pragma once

#include "shared.h"

namespace fastssl {

FASTSSL_SHARED constexpr double kXyzFromRgb[3][3] = {
    {0.412453, 0.357580, 0.180423}, {0.212671, 0.715160, 0.072169}, {0.019334, 0.119193, 0.950227}};
FASTSSL_SHARED constexpr double kRgbFromXyz[3][3] = {
    {3.240481343200526, -1.5371515162713185, -0.4985363261688878},
    {-0.9692549499965682, 1.8759900014898907, 0.04155592655829284},
    {0.05564663913517716, -0.20404133836651123, 1.0573110696453443}};
FASTSSL_SHARED constexpr double kWhite[3] = {0.95047, 1.0, 1.08883};

template <class T, class Roots, class V>
FASTSSL_SHARED inline V cube_root(V x) {
    const V y = Roots::template inverse<3>(x), square = y * y, root = x * square;
    return root - (root * root * root - x) * (square * T(1.0 / 3.0));  // one Newton step takes off the roundings
}

template <class T, class Roots, class V>
FASTSSL_SHARED inline V linear_from_srgb(V x) {
    const V u = (x + T(0.055)) * T(1 / 1.055);
    const V v = u * Roots::template inverse<5>(u);
    return x > T(0.04045) ? v * v * v : x * T(1 / 12.92);  // u^2.4 = (u u^(-1/5))^3
}

template <class T, class Roots, class V>
FASTSSL_SHARED inline V srgb_from_linear(V x) {
    const V c = cube_root<T, Roots>(x), y = Roots::template inverse<4>(c), v = c * y;  // x^(1/2.4) = c^(5/4)
    return x > T(0.0031308) ? v * v * (y * T(1.055)) - T(0.055) : x * T(12.92);
}

template <class T, class Roots, class V>
FASTSSL_SHARED inline V lab_curve(V t) {
    const V root = cube_root<T, Roots>(t);
    return t > T(0.008856) ? root : t * T(7.787) + T(16.0 / 116.0);
}

template <class T, class V>
FASTSSL_SHARED inline V lab_curve_inverse(V f) {
    return f > T(0.2068966) ? f * f * f : (f - T(16.0 / 116.0)) * T(1 / 7.787);
}

// R, G, B of a pixel -> L, a, b.
template <class T, class Roots, class V>
FASTSSL_SHARED inline void lab_from_rgb(V (&c)[3]) {
    V f[3];
    for (int i = 0; i < 3; ++i) c[i] = linear_from_srgb<T, Roots>(c[i]);
    for (int i = 0; i < 3; ++i)
        f[i] = lab_curve<T, Roots>(V(c[0] * T(kXyzFromRgb[i][0] / kWhite[i]) + c[1] * T(kXyzFromRgb[i][1] / kWhite[i]) +
                                      c[2] * T(kXyzFromRgb[i][2] / kWhite[i])));
    c[0] = f[1] * T(116) - T(16);
    c[1] = (f[0] - f[1]) * T(500);
    c[2] = (f[1] - f[2]) * T(200);
}

// L, a, b of a pixel -> R, G, B.
template <class T, class Roots, class V>
FASTSSL_SHARED inline void rgb_from_lab(V (&c)[3]) {
    const V zero = {}, one = zero + T(1);
    const V fy = (c[0] + T(16)) * T(1.0 / 116), fx = fy + c[1] * T(1.0 / 500), fz = fy - c[2] * T(1.0 / 200);
    const V x = lab_curve_inverse<T>(fx), y = lab_curve_inverse<T>(fy), z = lab_curve_inverse<T>(fz < zero ? zero : fz);
    for (int i = 0; i < 3; ++i) {
        const V value = srgb_from_linear<T, Roots>(
            V(x * T(kRgbFromXyz[i][0] * kWhite[0]) + y * T(kRgbFromXyz[i][1] * kWhite[1]) +
              z * T(kRgbFromXyz[i][2] * kWhite[2])));
        const V below = value > one ? one : value;  // comparisons that leave NaN
        c[i] = below < zero ? zero : below;
    }
}

// How many bins a pixel's chroma is assigned to, and the Gaussian that weighs them.
constexpr int kNearest = 5;
constexpr double kSigma = 5.0;

// Weights of the kNearest bins from their squared distances, rising, in their place.
template <class T, class Roots, class V>
FASTSSL_SHARED inline void weigh_bins(V (&distance)[kNearest]) {
    V weight[kNearest], total = {};
    for (int k = 0; k < kNearest; ++k) {
        // relative to the nearest: far from every bin all would be 0
        weight[k] = Roots::exponential(V((distance[0] - distance[k]) * T(0.5 / (kSigma * kSigma))));
        total += weight[k];
    }
    const V scale = T(1) / total;
    for (int k = 0; k < kNearest; ++k) distance[k] = weight[k] * scale;
}

}  // namespace fastssl
