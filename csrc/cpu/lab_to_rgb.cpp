// CIELAB to sRGB, the inverse of rgb_to_lab.cpp; what lies outside the gamut is clamped to [0, 1].
//
//   fY = (L + 16) / 116, fX = fY + a / 500, fZ = max(fY - b / 200, 0)      t = f > 0.2068966 ? f^3 : (f - 16/116) / 7.787
//   linear = M^-1 (t white)      c = linear <= 0.0031308 ? 12.92 linear : 1.055 linear^(1/2.4) - 0.055
//
// One pass: each pixel is read and written once. linear^(1/2.4) is c^(5/4) of the cube root c. Formula: csrc/shared/color.h. Computed in float
// (double for f64).
// Reference and tests: fastssl/ops/lab_to_rgb.py, tests/ops/test_lab_to_rgb.py.
#include "lab_to_rgb.h"

#include "color.h"

namespace fastssl::FASTSSL_ISA {

void lab_to_rgb(const void* lab, std::int64_t images, std::int64_t plane, DType dtype, void* rgb, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        map_pixels<T>(static_cast<const S*>(lab), static_cast<S*>(rgb), images, plane, threads,
                      [](Vec<T>(&channels)[3]) { rgb_from_lab<T, Roots<T>>(channels); });
    });
}

}  // namespace fastssl::FASTSSL_ISA
