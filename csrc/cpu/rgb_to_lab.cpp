// sRGB to CIELAB (IEC 61966-2-1 and CIE 15; D65, 2 degree observer).
//
//   linear = c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055)^2.4      (X, Y, Z) = M linear, divided by the white point
//   f(t) = t > 0.008856 ? t^(1/3) : 7.787 t + 16/116      L = 116 f(Y) - 16, a = 500 (f(X) - f(Y)), b = 200 (f(Y) - f(Z))
//
// One pass: each pixel is read and written once (24 bytes in float), about 170 vector operations for each vector of
// pixels. The powers are roots of roots.h. Formula: csrc/shared/color.h. Computed in float (double for f64).
// Reference and tests: fastssl/ops/rgb_to_lab.py, tests/ops/test_rgb_to_lab.py.
#include "rgb_to_lab.h"

#include "color.h"

namespace fastssl::FASTSSL_ISA {

void rgb_to_lab(const void* rgb, std::int64_t images, std::int64_t plane, DType dtype, void* lab, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        map_pixels<T>(static_cast<const S*>(rgb), static_cast<S*>(lab), images, plane, threads,
                      [](Vec<T>(&channels)[3]) { lab_from_rgb<T, Roots<T>>(channels); });
    });
}

}  // namespace fastssl::FASTSSL_ISA
