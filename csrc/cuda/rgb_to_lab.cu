// sRGB to CIELAB (IEC 61966-2-1 and CIE 15; D65, 2 degree observer). The formula is in csrc/shared/color.h.
//
// Grid: one thread a run of pixels, 16 bytes of each of the three planes (one pixel where planes are no multiple of that
// or not aligned). Block: 256 threads. Computed in float (double for f64).
// Bytes moved: each pixel read and written once, 24 in float; about 180 operations a pixel.
// CUDA and not Triton: one pass over bytes, a formula shared with the C++ kernel, and no products.
// Reference and tests: fastssl/ops/rgb_to_lab.py, tests/ops/test_rgb_to_lab.py.
#include "rgb_to_lab.h"

#include "color.cuh"

namespace fastssl::cuda {
namespace {

struct LabFromRgb {
    template <class T>
    static __device__ void apply(T (&pixel)[3]) {
        lab_from_rgb<T, Roots<T>>(pixel);
    }
};

}  // namespace

cudaError_t rgb_to_lab(const void* rgb, std::int64_t images, std::int64_t plane, DType dtype, void* lab,
                       cudaStream_t stream) {
    return map_pixels<LabFromRgb>(rgb, images, plane, dtype, lab, stream);
}

}  // namespace fastssl::cuda
