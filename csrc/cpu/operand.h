// What products multiply: numbers of the type that they are summed in, or pairs of bfloat16 where the processor
// multiplies and adds these at once, twice as many as of float in an instruction, each product exact. Where a matrix unit
// does, floats are multiplied as such pairs too, three for each two.
#pragma once

#include "dtype.h"
#include "simd.h"
#include "threads.h"

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

// Two neighbours of float, each the sum of three parts of bfloat16: the nearest to it, what is left cut off to as many
// bits, and what is left then. Each part has 8 bits, so none of a float's 24 is lost (over 1e-31: the unit takes subnormal
// parts for 0). kUnit of them lie in memory part by part, so that each part is a row of the unit's registers: no place but the first of kUnit is an address.
struct UnitParts {
    Pair parts[3];
};
template <>
constexpr bool kByMatrixUnit<UnitParts> = true;
template <class O>
constexpr bool kInParts = false;
template <>
constexpr bool kInParts<UnitParts> = true;
constexpr int kParts = 3;

// Rows, pairs of a row and columns of one of the unit's registers.
constexpr int kUnit = 16;

// A part of the kUnit that begin at `first`.
inline Pair* part(UnitParts* first, int which) { return reinterpret_cast<Pair*>(first) + which * kUnit; }
inline const Pair* part(const UnitParts* first, int which) {
    return reinterpret_cast<const Pair*>(first) + which * kUnit;
}

template <>
struct VectorOf<Pair> {
    typedef std::int32_t type __attribute__((vector_size(kVectorBytes)));
};

template <>
struct VectorOf<UnitPair> : VectorOf<Pair> {};

template <>
constexpr int kWidth<UnitParts> = kUnit;

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
template <>
struct SumOf<UnitParts> : SumOf<Pair> {};
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
template <>
constexpr int kDepths<UnitParts> = 2;

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

// Calls f with a value of the C++ type of `dtype` if rows of it may be multiplied as pairs of O.
template <class O, class F>
inline void with_pairs_of(DType dtype, F f) {
    if constexpr (kInParts<O>)
        with_type(dtype, f);
    else if (dtype == DType::bf16)
        f(bfloat16{});
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

// Two rows of pairs of neighbours, 32 numbers each: the pairs of what stands below each other, kWidth<Pair> of them and
// then as many, `apart` further.
inline void interleave(const Pair* upper, const Pair* lower, Pair* out, int apart = kWidth<Pair>) {
    constexpr short kHalf[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = (__m512i)load<Pair>(reinterpret_cast<const Pair*>(kHalf));
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const __m512i a = (__m512i)load<Pair>(upper), b = (__m512i)load<Pair>(lower);
    store<Pair>(out, (Vec<Pair>)_mm512_permutex2var_epi16(a, first, b));
    store<Pair>(out + apart, (Vec<Pair>)_mm512_permutex2var_epi16(a, second, b));
}

#if FASTSSL_MATRIX_UNIT
inline void interleave(const UnitParts* upper, const UnitParts* lower, UnitParts* out) {
    for (int which = 0; which < kParts; ++which)
        interleave(part(upper, which), part(lower, which), part(out, which), kParts * kUnit);
}

// Two vectors of numbers in parts, as pairs (x[i], y[i]).
inline void split(Vec<float> x, Vec<float> y, Vec<Pair> (&parts)[kParts]) {
    using Bits = VectorOf<float>::bits;
    constexpr std::uint32_t kUpper = 0xffff0000;
#pragma GCC unroll 3
    for (int which = 0; which < kParts; ++which) {
        const std::uint32_t half = which == 0 ? 0x8000 : 0;
        const Bits a = (Bits)x + half, b = (Bits)y + half;
        parts[which] = (Vec<Pair>)((a >> 16) | (b & kUpper));
        x -= (Vec<float>)(a & kUpper);
        y -= (Vec<float>)(b & kUpper);
    }
}

// The 32 numbers that follow p as kUnit pairs of neighbours.
inline void store_parts_of_neighbours(const float* p, UnitParts* out) {
    constexpr int kEven[16] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    const __m512i first = (__m512i)load<Pair>(reinterpret_cast<const Pair*>(kEven));
    const __m512 low = (__m512)load<float>(p), high = (__m512)load<float>(p + kWidth<float>);
    const Vec<float> even = (Vec<float>)_mm512_permutex2var_ps(low, first, high);
    const Vec<float> odd = (Vec<float>)_mm512_permutex2var_ps(low, _mm512_add_epi32(first, _mm512_set1_epi32(1)), high);
    Vec<Pair> parts[kParts];
    split(even, odd, parts);
#pragma GCC unroll 3
    for (int which = 0; which < kParts; ++which) store<Pair>(part(out, which), parts[which]);
}

template <class S>
inline void copy_pairs(const S* row, std::int64_t d, std::int64_t count, UnitParts* out) {
    for (std::int64_t first = 0; first < 2 * count; first += 2 * kUnit, out += kUnit) {
        alignas(64) float numbers[2 * kUnit] = {};
        if (first + 2 * kUnit <= d)
            for (int k = 0; k < 2 * kUnit; ++k) numbers[k] = static_cast<float>(widen(row[first + k]));
        else
            for (std::int64_t k = first; k < d; ++k) numbers[k - first] = static_cast<float>(widen(row[k]));
        store_parts_of_neighbours(numbers, out);
    }
}
#endif

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

// Numbers that are multiplied, `count` of them.
struct Numbers {
    const void* data;
    std::int64_t count;
    DType dtype;
};

// Whether each is the sum of its parts: finite, and not so large that the first part is not. Sums that come near float's
// largest on their way may overflow where those of floats do not.
inline bool have_parts(const Numbers& numbers, int threads) {
    constexpr std::int64_t kAtOnce = 4096;
    constexpr std::uint32_t kLargest = 0x7f7f7fff;
    bool all = true;
    with_type(numbers.dtype, [&](auto type) {
        const auto* data = static_cast<const decltype(type)*>(numbers.data);
#pragma omp parallel for num_threads(for_elements(threads, numbers.count)) schedule(static) reduction(&& : all)
        for (std::int64_t first = 0; first < numbers.count; first += kAtOnce) {
            const std::int64_t last = first + kAtOnce < numbers.count ? first + kAtOnce : numbers.count;
            std::uint32_t beyond = 0;  // no branch, that the loop is one of vectors
            for (std::int64_t k = first; k < last; ++k)
                beyond |= (to_bits(static_cast<float>(widen(data[k]))) & 0x7fffffff) > kLargest;
            all = all && beyond == 0;
        }
    });
    return all;
}

// What has no parts has one that is NaN, and so are all sums of products with it.
inline bool is_finite(float x) { return x - x == 0.0f; }

// Calls f with a value of the type that products of tensors of `dtype` multiply (its value is meaningless); `of` are the
// numbers that are to be looked through, whether they have parts.
template <class F, class... Of>
inline void with_operand(DType dtype, [[maybe_unused]] int threads, F f, [[maybe_unused]] const Of&... of) {
    if (dtype == DType::f64) return f(double{});
    if (dtype == DType::bf16) return with_bfloat16_operand(f);
#if FASTSSL_MATRIX_UNIT && defined(__AVX512BF16__)
    if (current_isa() == Isa::amx && (have_parts(of, threads) && ...)) return f(UnitParts{});
#endif
    f(float{});
}

}  // namespace fastssl::FASTSSL_ISA
