// CIELAB to sRGB, the inverse of rgb_to_lab.cpp; what lies outside the gamut is clamped to [0, 1].
//
//   fY = (L + 16) / 116, fX = fY + a / 500, fZ = max(fY - b / 200, 0)      t = f > 0.2068966 ? f^3 : (f - 16/116) / 7.787
//   linear = M^-1 (t white)      c = linear <= 0.0031308 ? 12.92 linear : 1.055 linear^(1/2.4) - 0.055
//
// One pass: each pixel is read and written once. linear^(1/2.4) is c^(5/4) of the cube root c. Computed in float
// (double for f64).
// Reference and tests: fastssl/ops/lab_to_rgb.py, tests/ops/test_lab_to_rgb.py.
#include "lab_to_rgb.h"

#include "color.h"

namespace fastssl::FASTSSL_ISA {
namespace {

template <class T>
void rgb_pixels(Vec<T>* c) {
    const Vec<T> zero = {}, one = broadcast<T>(T(1));
    const Vec<T> fy = (c[0] + T(16)) * T(1.0 / 116), fx = fy + c[1] * T(1.0 / 500), fz = fy - c[2] * T(1.0 / 200);
    const Vec<T> xyz[3] = {lab_curve_inverse<T>(fx), lab_curve_inverse<T>(fy),
                           lab_curve_inverse<T>(fz < zero ? zero : fz)};
    for (int i = 0; i < 3; ++i) {
        const Vec<T> value = srgb_from_linear<T>(xyz[0] * T(kRgbFromXyz[i][0] * kWhite[0]) +
                                                 xyz[1] * T(kRgbFromXyz[i][1] * kWhite[1]) +
                                                 xyz[2] * T(kRgbFromXyz[i][2] * kWhite[2]));
        const Vec<T> below = value > one ? one : value;  // comparisons that leave NaN
        c[i] = below < zero ? zero : below;
    }
}

}  // namespace

void lab_to_rgb(const void* lab, std::int64_t images, std::int64_t plane, DType dtype, void* rgb, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        map_pixels<T>(static_cast<const S*>(lab), static_cast<S*>(rgb), images, plane, threads,
                      [](Vec<T>* channels) { rgb_pixels<T>(channels); });
    });
}

}  // namespace fastssl::FASTSSL_ISA
