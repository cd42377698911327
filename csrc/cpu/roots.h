// Inverse roots, lane by lane, without a division.
#pragma once

#include "simd.h"

namespace fastssl::FASTSSL_ISA {

// x^(-1/N) for positive normal x, N in 3..5; relative error under 1e-7 in float (0.8 units in the last place), 1e-15 in
// double. Of zero, negative, subnormal or infinite x the result means nothing; NaN gives NaN.
// The bits of a float are nearly its logarithm: divided by -N they are a start within 5 %. Each step then multiplies by
// the first terms of (1 - r)^(-1/N), r = 1 - x y^N, and takes the error e to about 10 e^4 for N = 3, 40 e^4 for N = 5.
template <int N, class T, int Steps = sizeof(T) == 4 ? 2 : 3>
inline Vec<T> inverse_root(Vec<T> x) {
    using Integer = typename VectorOf<T>::integer;
    constexpr int mantissa = sizeof(T) == 4 ? 23 : 52, bias = sizeof(T) == 4 ? 127 : 1023;
    constexpr T start = T((1.0 + 1.0 / N) * (bias - 0.05) * static_cast<double>(std::int64_t{1} << mantissa));
    constexpr T first = T(1.0 / N), second = T((1.0 + N) / (2.0 * N * N));
    constexpr T third = T((1.0 + N) * (1.0 + 2 * N) / (6.0 * N * N * N));
    Integer bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = __builtin_convertvector(start - __builtin_convertvector(bits, Vec<T>) * first, Integer);
    Vec<T> y;
    std::memcpy(&y, &bits, sizeof y);
#pragma GCC unroll 3
    for (int step = 0; step < Steps; ++step) {
        const Vec<T> square = y * y, fourth = square * square;
        const Vec<T> r = T(1) - x * (N == 3 ? square * y : N == 4 ? fourth : fourth * y);
        y += y * (r * (first + r * (second + r * third)));
    }
    return y;
}

}  // namespace fastssl::FASTSSL_ISA
