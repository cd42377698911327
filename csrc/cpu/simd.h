// Vectors as wide as the instruction set in use, on the compilers' vector extension: `a * b + c` is a fused
// multiply-add where there is one (-ffp-contract=fast), and the same source serves SSE2, AVX2, AVX-512 and Arm.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastssl::FASTSSL_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef std::int32_t integer __attribute__((vector_size(kVectorBytes)));
    typedef std::uint32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef std::int64_t integer __attribute__((vector_size(kVectorBytes)));
    typedef std::uint64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> broadcast(T x) {
    return x - Vec<T>{};
}

template <class T>
constexpr T kLowest = T(-3.4e38);  // a finite minus infinity: differences of two of them are not NaN
template <class T>
constexpr T kInfinity = T(__builtin_inf());

template <class V>
inline V vmax(V a, V b) {
    return a > b ? a : b;
}

template <class V>
inline V vmin(V a, V b) {
    return a < b ? a : b;
}

// The lower half of v plus its upper half, as half as long a vector.
template <class T, int Bytes, class V>
inline T sum_halves(V v) {
    if constexpr (Bytes == sizeof(T)) {
        return v[0];
    } else {
        typedef T Half __attribute__((vector_size(Bytes / 2)));
        Half low, high;
        std::memcpy(&low, &v, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
        return sum_halves<T, Bytes / 2>(low + high);
    }
}

// Pairwise: the error grows with log2 of the width.
template <class T>
inline T sum(Vec<T> v) {
    return sum_halves<T, kVectorBytes>(v);
}

template <class T>
inline T largest(Vec<T> v) {
    T most = v[0];
    for (int i = 1; i < kWidth<T>; ++i)
        if (v[i] > most) most = v[i];
    return most;
}

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    // x = n ln 2 + r, |r| <= ln(2)/2; ln 2 in two parts so that n * high is exact
    static constexpr float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float rounder = 12582912.0f;   // 1.5 * 2^23: adding it leaves round(x) in the low bits
    static constexpr float smallest = -86.6433975f;  // e^x under 2^-125 is returned as 0
    static constexpr float largest = 88.7228391f;    // above it: infinity
    static constexpr int bias = 127, mantissa = 23;
    // minimax on |r| <= ln(2)/2 with value 1 at 0, highest degree first: 2e-9 from e^r, so what is left is rounding:
    // the exponential is within 1.1 ulp, and 1.4 where there is no fused multiply-add (tests/ops/test_exp.py)
    static constexpr float polynomial[] = {1.384364441037178e-3f, 8.374162949621677e-3f, 4.166800156235695e-2f,
                                           1.6666431725025177e-1f, 4.999999403953552e-1f, 1.0f, 1.0f};
};

template <>
struct ExpConstants<double> {
    static constexpr double log2e = 1.44269504088896340736, ln2_high = 6.93145751953125e-1;
    static constexpr double ln2_low = 1.42860682030941723212e-6, rounder = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double smallest = -707.703271365297, largest = 709.782712893383996;
    static constexpr int bias = 1023, mantissa = 52;
    // Taylor to degree 13: the remainder at ln(2)/2 is 4e-18, and the exponential is within 1.2 ulp
    static constexpr double polynomial[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                            1.0 / 40320,      1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
                                            1.0 / 6,          1.0 / 2,         1.0,            1.0};
};

template <class T>
inline Vec<T> exp_polynomial(Vec<T> r) {
    using C = ExpConstants<T>;
    Vec<T> p = broadcast<T>(C::polynomial[0]);
#pragma GCC unroll 16
    for (unsigned i = 1; i < sizeof(C::polynomial) / sizeof(T); ++i) p = p * r + C::polynomial[i];
    return p;
}

// e^x, lane by lane; exp(-inf) = 0, exp(inf) = inf, exp(NaN) = NaN; results under 2^-125 (float) or 2^-1021 (double) are 0.
template <class T>
inline Vec<T> exp(Vec<T> x) {
    using C = ExpConstants<T>;
    using Bits = typename VectorOf<T>::bits;  // unsigned: they wrap where x is out of range and the result not used
    const Vec<T> shifted = x * C::log2e + C::rounder;
    const Vec<T> n = shifted - C::rounder;
    const Vec<T> p = exp_polynomial<T>((x - n * C::ln2_high) - n * C::ln2_low);
    // 2^n by its bits, in two factors so that n = 128 (just under the largest x) does not overflow on the way
    Bits k;
    std::memcpy(&k, &shifted, sizeof k);
    Bits magic;
    const Vec<T> rounder = broadcast<T>(C::rounder);
    std::memcpy(&magic, &rounder, sizeof magic);
    k -= magic;
    const Bits bits = (k + (C::bias - 1)) << C::mantissa;
    Vec<T> scale;
    std::memcpy(&scale, &bits, sizeof scale);
    const Vec<T> value = p * scale * T(2);
    const Vec<T> zero = broadcast<T>(T(0));
    const Vec<T> infinity = broadcast<T>(T(__builtin_inf()));
    return x < C::smallest ? zero : (x > C::largest ? infinity : value);
}

#if defined(__AVX512F__)
// The same with the instructions that round to integers and scale by powers of two: 14 in place of 20.
template <>
inline Vec<float> exp<float>(Vec<float> x) {
    using C = ExpConstants<float>;
    constexpr __mmask16 kAll = 0xffff;  // g++ warns of the unmasked forms' own undefined operands
    constexpr int to_nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const __m512 bounded = _mm512_maskz_min_ps(kAll, _mm512_set1_ps(128.0f), x);  // 2^185 is infinity; a NaN stays
    const __m512 n = _mm512_maskz_roundscale_ps(kAll, bounded * C::log2e, to_nearest);
    const __m512 p = exp_polynomial<float>((bounded - n * C::ln2_high) - n * C::ln2_low);
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(C::smallest), _CMP_NLT_UQ), p, n);
}
#endif

}  // namespace fastssl::FASTSSL_ISA
