// Products of pairs of bfloat16 by the matrix unit of a processor that has one (AMX): an instruction multiplies 16 rows
// of 16 pairs with 16 rows of 16 pairs, each product exact, and adds to 16 x 16 sums in float.
//
// Of floats in three parts (operand.h), six of the nine products are summed: first the five in which a part is small, at
// last those of the largest parts, so that little is rounded beside what is large. The three that are left out are at most
// 2^-21.9 of the floats' product, 2^-26 on average. Henry, Tang and Heinecke 2019 (arXiv:1904.06376) multiply floats so.
#pragma once

#include <type_traits>

#include "operand.h"

namespace fastssl::FASTSSL_ISA {

#if FASTSSL_MATRIX_UNIT && defined(__AVX512BF16__)
// c (Rows, 32) (+)= a (Rows, depth) b (depth, 32), the depth in pairs, a multiple of 16: MatrixUnit::multiply, which takes
// a[i * a_stride + k], the next 16 pairs a_step further, and b[k * b_stride + j], while a MatrixUnit lives in the thread.
#if defined(__SANITIZE_ADDRESS__)
// By loops, which a sanitizer can follow.
class MatrixUnit {
public:
    MatrixUnit() {}
    template <bool Accumulate, int Rows>
    static void multiply(const UnitPair* a, std::int64_t a_stride, std::int64_t a_step, const UnitPair* b,
                         std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride) {
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < 2 * kUnit; ++j) {
                float sum = Accumulate ? c[i * c_stride + j] : 0.0f;
                for (std::int64_t k = 0; k < depth; ++k) {
                    const Pair x = a[i * a_stride + k / kUnit * a_step + k % kUnit], y = b[k * b_stride + j];
                    sum += widen(x.first) * widen(y.first) + widen(x.second) * widen(y.second);
                }
                c[i * c_stride + j] = sum;
            }
    }
    template <bool Accumulate, int Rows>
    static void multiply(const UnitParts* a, std::int64_t a_stride, std::int64_t a_step, const UnitParts* b,
                         std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride) {
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < 2 * kUnit; ++j) {
                const auto sum_of = [&](int left, int right) {
                    float sum = 0.0f;
                    for (std::int64_t k = 0; k < depth; ++k) {
                        const Pair x = part(a + i * a_stride + k / kUnit * a_step, left)[k % kUnit];
                        const Pair y = part(b + k * b_stride + j / kUnit * kUnit, right)[j % kUnit];
                        sum += widen(x.first) * widen(y.first) + widen(x.second) * widen(y.second);
                    }
                    return sum;
                };
                const float small = sum_of(2, 0) + sum_of(1, 0) + sum_of(1, 1) + sum_of(0, 1) + sum_of(0, 2);
                const float sum = small + sum_of(0, 0);
                c[i * c_stride + j] = Accumulate ? c[i * c_stride + j] + sum : sum;
            }
    }
};
#else
// Shapes the registers of the thread, which other libraries use and shape too, for as long as it lives.
class MatrixUnit {
public:
    MatrixUnit() { asm volatile("ldtilecfg %0" : : "m"(kShapes)); }
    ~MatrixUnit() { asm volatile("tilerelease"); }
    MatrixUnit(const MatrixUnit&) = delete;
    MatrixUnit& operator=(const MatrixUnit&) = delete;

    template <bool Accumulate, int Rows>
    static void multiply(const UnitPair* a, std::int64_t a_stride, std::int64_t a_step, const UnitPair* b,
                         std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride) {
        begin<Accumulate, Rows>(c, c_stride);
        for (std::int64_t k = 0; k < depth; k += kUnit, a += a_step, b += kUnit * b_stride) {
            read_right(b, b_stride, kUnit);
            read_left<Rows>(a, a_stride);
            add<Rows>();
        }
        end<Rows>(c, c_stride);
    }

    // What is small is summed apart from what c had.
    template <bool Accumulate, int Rows>
    static void multiply(const UnitParts* a, std::int64_t a_stride, std::int64_t a_step, const UnitParts* b,
                         std::int64_t b_stride, std::int64_t depth, float* c, std::int64_t c_stride) {
        alignas(64) float sums[Rows * 2 * kUnit];
        float* const out = Accumulate ? sums : c;
        const std::int64_t out_stride = Accumulate ? 2 * kUnit : c_stride;
        begin<false, Rows>(out, out_stride);
        const auto left = [&](std::int64_t k, int which) {
            read_left<Rows>(part(a + k / kUnit * a_step, which), kParts * a_stride);
        };
        const auto right = [&](std::int64_t k, int which) {
            read_right(part(b + k * b_stride, which), kParts * b_stride, kParts * kUnit);
        };
        for (std::int64_t k = 0; k < depth; k += kUnit) {  // one side is read anew for each product, not both
            right(k, 0), left(k, 2), add<Rows>();
            left(k, 1), add<Rows>();
            right(k, 1), add<Rows>();
            left(k, 0), add<Rows>();
            right(k, 2), add<Rows>();
        }
        for (std::int64_t k = 0; k < depth; k += kUnit) right(k, 0), left(k, 0), add<Rows>();
        end<Rows>(out, out_stride);
        for (int i = 0; Accumulate && i < Rows; ++i)
            for (int j = 0; j < 2 * kUnit; j += kWidth<float>) {
                float* const to = c + i * c_stride + j;
                store<float>(to, load<float>(to) + load<float>(sums + i * 2 * kUnit + j));
            }
    }

    // Its instructions; `stride` in numbers of 4 bytes, as all addresses here.
    template <int Register, class T>
    static void read(const T* from, std::int64_t stride) {
        asm volatile("tileloadd (%0,%1,4), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Register) : "memory");
    }
    template <int Register>
    static void write(float* to, std::int64_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,4)" : : "r"(to), "r"(stride), "i"(Register) : "memory");
    }
    template <int Register>
    static void clear() {
        asm volatile("tilezero %%tmm%c0" : : "i"(Register));
    }
    template <int Sums, int A, int B>
    static void multiply_add() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
    }

private:
    // The sums of 16 or 32 rows and 32 columns stay in four registers.
    template <bool Accumulate, int Rows>
    static void begin(const float* c, std::int64_t c_stride) {
        static_assert(Rows == kUnit || Rows == 2 * kUnit);
        constexpr bool two = Rows == 2 * kUnit;
        if constexpr (Accumulate) {
            read<0>(c, c_stride), read<1>(c + kUnit, c_stride);
            if constexpr (two) read<2>(c + kUnit * c_stride, c_stride), read<3>(c + kUnit * c_stride + kUnit, c_stride);
        } else {
            clear<0>(), clear<1>();
            if constexpr (two) clear<2>(), clear<3>();
        }
    }

    template <int Rows>
    static void read_left(const Pair* a, std::int64_t a_stride) {
        read<4>(a, a_stride);
        if constexpr (Rows == 2 * kUnit) read<5>(a + kUnit * a_stride, a_stride);
    }

    // b_step from one register's columns to the next one's.
    static void read_right(const Pair* b, std::int64_t b_stride, std::int64_t b_step) {
        read<6>(b, b_stride), read<7>(b + b_step, b_stride);
    }

    template <int Rows>
    static void add() {
        multiply_add<0, 4, 6>(), multiply_add<1, 4, 7>();
        if constexpr (Rows == 2 * kUnit) multiply_add<2, 5, 6>(), multiply_add<3, 5, 7>();
    }

    template <int Rows>
    static void end(float* c, std::int64_t c_stride) {
        write<0>(c, c_stride), write<1>(c + kUnit, c_stride);
        if constexpr (Rows == 2 * kUnit)
            write<2>(c + kUnit * c_stride, c_stride), write<3>(c + kUnit * c_stride + kUnit, c_stride);
    }

    struct Shapes {
        std::uint8_t palette, first_row, reserved[14];
        std::uint16_t bytes_a_row[16];
        std::uint8_t rows[16];
    };
    static_assert(sizeof(Shapes) == 64);
    static constexpr Shapes kShapes{
        1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {kUnit, kUnit, kUnit, kUnit, kUnit, kUnit, kUnit, kUnit}};
};
#endif

// out[j * stride + i] = in[i] lane j, for 16 vectors of 16 pairs.
inline void store_transposed(Vec<Pair> (&in)[kUnit], Pair* out, std::int64_t stride) {
    // in each step, rows that lie so far apart exchange their squares beside the diagonal
#pragma GCC unroll 4
    for (int apart = 1; apart < kUnit; apart *= 2) {
        Vec<Pair> upper{}, lower{};
#pragma GCC unroll 16
        for (int c = 0; c < kUnit; ++c) {
            upper[c] = (c & apart) != 0 ? kUnit + c - apart : c;
            lower[c] = (c & apart) != 0 ? kUnit + c : c + apart;
        }
#pragma GCC unroll 16
        for (int i = 0; i < kUnit; ++i) {
            if ((i & apart) != 0) continue;
            const __m512i a = (__m512i)in[i], b = (__m512i)in[i + apart];
            in[i] = (Vec<Pair>)_mm512_permutex2var_epi32(a, (__m512i)upper, b);
            in[i + apart] = (Vec<Pair>)_mm512_permutex2var_epi32(a, (__m512i)lower, b);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kUnit; ++i) store<Pair>(out + i * stride, in[i]);
}

// out[k * out_stride + i] = in[i * in_stride + k], kUnit x kUnit.
inline void transpose_square(const UnitParts* in, std::int64_t in_stride, UnitParts* out, std::int64_t out_stride) {
    for (int which = 0; which < kParts; ++which) {
        Vec<Pair> rows[kUnit];
        for (int i = 0; i < kUnit; ++i) rows[i] = load<Pair>(part(in + i * in_stride, which));
        store_transposed(rows, part(out, which), kParts * out_stride);
    }
}
#else
class MatrixUnit {  // none: nothing is multiplied by it (operand.h)
public:
    template <bool, int, class... Operands>
    static void multiply(Operands...) {}
};
#endif

// What lives while products of O are computed.
struct NoUnit {
    NoUnit() {}
};
template <class O>
using UnitFor = std::conditional_t<kByMatrixUnit<O>, MatrixUnit, NoUnit>;

}  // namespace fastssl::FASTSSL_ISA
