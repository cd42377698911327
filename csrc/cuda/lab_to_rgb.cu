// CIELAB to sRGB, the inverse of rgb_to_lab.cu; what lies outside the gamut is clamped to [0, 1]. The formula is in
// csrc/shared/color.h.
//
// Grid: one thread a run of pixels, 16 bytes of each of the three planes (one pixel where planes are no multiple of that
// or not aligned). Block: 256 threads. Computed in float (double for f64); linear^(1/2.4) is c^(5/4) of the cube root c.
// Bytes moved: each pixel read and written once, 24 in float.
// CUDA and not Triton: one pass over bytes, a formula shared with the C++ kernel, and no products.
// Reference and tests: fastssl/ops/lab_to_rgb.py, tests/ops/test_lab_to_rgb.py.
#include "lab_to_rgb.h"

#include "color.cuh"

namespace fastssl::cuda {
namespace {

struct RgbFromLab {
    template <class T>
    static __device__ void apply(T (&pixel)[3]) {
        rgb_from_lab<T, Roots<T>>(pixel);
    }
};

}  // namespace

cudaError_t lab_to_rgb(const void* lab, std::int64_t images, std::int64_t plane, DType dtype, void* rgb,
                       cudaStream_t stream) {
    return map_pixels<RgbFromLab>(lab, images, plane, dtype, rgb, stream);
}

}  // namespace fastssl::cuda
