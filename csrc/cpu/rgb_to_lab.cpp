// sRGB to CIELAB (IEC 61966-2-1 and CIE 15; D65, 2 degree observer).
//
//   linear = c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055)^2.4      (X, Y, Z) = M linear, divided by the white point
//   f(t) = t > 0.008856 ? t^(1/3) : 7.787 t + 16/116      L = 116 f(Y) - 16, a = 500 (f(X) - f(Y)), b = 200 (f(Y) - f(Z))
//
// One pass: each pixel is read and written once (24 bytes in float), about 170 vector operations for each vector of
// pixels. The powers are roots of roots.h. Computed in float (double for f64).
// Reference and tests: fastssl/ops/rgb_to_lab.py, tests/ops/test_rgb_to_lab.py.
#include "rgb_to_lab.h"

#include "color.h"

namespace fastssl::FASTSSL_ISA {
namespace {

template <class T>
void lab_pixels(Vec<T>* c) {
    for (int i = 0; i < 3; ++i) c[i] = linear_from_srgb<T>(c[i]);
    Vec<T> f[3];
    for (int i = 0; i < 3; ++i)
        f[i] = lab_curve<T>(c[0] * T(kXyzFromRgb[i][0] / kWhite[i]) + c[1] * T(kXyzFromRgb[i][1] / kWhite[i]) +
                            c[2] * T(kXyzFromRgb[i][2] / kWhite[i]));
    c[0] = f[1] * T(116) - T(16);
    c[1] = (f[0] - f[1]) * T(500);
    c[2] = (f[1] - f[2]) * T(200);
}

}  // namespace

void rgb_to_lab(const void* rgb, std::int64_t images, std::int64_t plane, DType dtype, void* lab, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        map_pixels<T>(static_cast<const S*>(rgb), static_cast<S*>(lab), images, plane, threads,
                      [](Vec<T>* channels) { lab_pixels<T>(channels); });
    });
}

}  // namespace fastssl::FASTSSL_ISA
