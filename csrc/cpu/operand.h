// What products multiply: numbers of the type that they are summed in, or pairs of bfloat16 where the processor
// multiplies and adds these at once, twice as many as of float in an instruction, each product exact.
#pragma once

#include "dtype.h"
#include "simd.h"

namespace fastssl::FASTSSL_ISA {

// Two neighbours along the depth of a product.
struct Pair {
    bfloat16 first, second;
};
static_assert(sizeof(Pair) == sizeof(float));

// The same, where a matrix unit multiplies them (matrix_unit.h).
struct UnitPair : Pair {};
template <class O>
constexpr bool kByMatrixUnit = false;
template <>
constexpr bool kByMatrixUnit<UnitPair> = true;

template <>
struct VectorOf<Pair> {
    typedef std::int32_t type __attribute__((vector_size(kVectorBytes)));
};

template <>
struct VectorOf<UnitPair> : VectorOf<Pair> {};

template <>
inline Vec<Pair> broadcast<Pair>(Pair x) {
    std::int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits - Vec<Pair>{};
}

template <class O>
struct SumOf {
    using type = O;
};
template <>
struct SumOf<Pair> {
    using type = float;
};
template <>
struct SumOf<UnitPair> : SumOf<Pair> {};
// What products of O are summed in.
template <class O>
using Sum = typename SumOf<O>::type;

// How many steps of the depth one operand holds.
template <class O>
constexpr int kDepths = 1;
template <>
constexpr int kDepths<Pair> = 2;
template <>
constexpr int kDepths<UnitPair> = 2;

// How many steps of the depth a product takes at once: what fills them up is zero.
template <class O>
constexpr int kDepthsAtOnce = kByMatrixUnit<O> ? 32 : kDepths<O>;

// The depth of a product in operands.
template <class O>
inline std::int64_t operands(std::int64_t depth) {
    return (depth + kDepthsAtOnce<O> - 1) / kDepthsAtOnce<O> * (kDepthsAtOnce<O> / kDepths<O>);
}

// The k-th operand of a row of d numbers; what lies after the last is zero.
template <class O, class S>
inline O operand(const S* row, std::int64_t k, std::int64_t d) {
    if constexpr (kDepths<O> == 1)
        return static_cast<O>(widen(row[k]));
    else if constexpr (sizeof(S) == sizeof(bfloat16))  // of bfloat16: with_operand sees to it
        return O{bfloat16{2 * k < d ? row[2 * k].bits : std::uint16_t{0}},
                 bfloat16{2 * k + 1 < d ? row[2 * k + 1].bits : std::uint16_t{0}}};
    else
        return O{};
}

// A row of d numbers as `count` pairs of neighbours, zeros after the last.
inline void copy_pairs(const bfloat16* row, std::int64_t d, std::int64_t count, Pair* out) {
    for (std::int64_t k = d / 2; k < count; ++k) out[k] = Pair{};
    if (d > 0) std::memcpy(static_cast<void*>(out), row, static_cast<std::size_t>(d) * sizeof *row);
}

// sum + a b, lane by lane.
template <class O>
inline Vec<Sum<O>> multiply_add(Vec<Sum<O>> sum, Vec<O> a, Vec<O> b) {
    return sum + a * b;
}

#if defined(__AVX512BF16__)
template <>
inline Vec<float> multiply_add<Pair>(Vec<float> sum, Vec<Pair> a, Vec<Pair> b) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// x[0..15] and y[0..15], rounded to nearest, as pairs (x[i], y[i]).
inline Vec<Pair> paired(Vec<float> x, Vec<float> y) {
    constexpr __mmask16 kAll = 0xffff;  // g++ warns of the unmasked forms' own undefined operands
    const __m512i low = _mm512_maskz_cvtepu16_epi32(kAll, (__m256i)_mm512_cvtneps_pbh((__m512)x));
    const __m512i high = _mm512_maskz_cvtepu16_epi32(kAll, (__m256i)_mm512_cvtneps_pbh((__m512)y));
    return (Vec<Pair>)_mm512_or_si512(low, _mm512_maskz_slli_epi32(kAll, high, 16));
}

// The 32 numbers that follow p, rounded to nearest, as pairs of neighbours.
inline Vec<Pair> neighbours(const float* p) {
    return (Vec<Pair>)_mm512_cvtne2ps_pbh((__m512)load<float>(p + kWidth<float>), (__m512)load<float>(p));
}

// Two rows of pairs of neighbours, 32 numbers each: the pairs of what stands below each other.
template <class O>
inline void interleave(const O* upper, const O* lower, O* out) {
    constexpr short kHalf[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = (__m512i)load<Pair>(reinterpret_cast<const Pair*>(kHalf));
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const __m512i a = (__m512i)load<Pair>(upper), b = (__m512i)load<Pair>(lower);
    store<Pair>(out, (Vec<Pair>)_mm512_permutex2var_epi16(a, first, b));
    store<Pair>(out + kWidth<Pair>, (Vec<Pair>)_mm512_permutex2var_epi16(a, second, b));
}

// Calls f with a value of the type that rows of bfloat16 are multiplied as.
template <class F>
inline void with_bfloat16_operand(F f) {
#if FASTSSL_MATRIX_UNIT
    if (current_isa() == Isa::amx) return f(UnitPair{});
#endif
    f(Pair{});
}
#else
template <class F>
inline void with_bfloat16_operand(F f) {
    f(float{});  // widened
}
#endif

// What rows of one type are multiplied as with those of another: pairs need both to be of bfloat16.
inline DType beside(DType rows, DType others) {
    return rows == DType::bf16 && others != DType::bf16 ? DType::f32 : rows;
}

// Calls f with a value of the type that products of tensors of `dtype` multiply (its value is meaningless).
template <class F>
inline void with_operand(DType dtype, F f) {
    if (dtype == DType::f64)
        f(double{});
    else if (dtype == DType::bf16)
        with_bfloat16_operand(f);
    else
        f(float{});
}

}  // namespace fastssl::FASTSSL_ISA
