// Products of small matrices that stay in registers and the nearest cache.
#pragma once

#include "matrix_unit.h"

namespace fastssl::FASTSSL_ISA {

// Rows and columns of a tile of similarities: 36 KB in float, and a multiple of every register block below.
constexpr int kTile = 96;

// The register block: kBlockRows x kBlockVectors accumulators, one broadcast and kBlockVectors operands.
constexpr int kBlockRows = kVectorRegisters == 32 ? 12 : 6;
constexpr int kBlockVectors = 2;
template <class T>
constexpr int kBlockColumns = kBlockVectors * kWidth<T>;

// Rows that products of O take at once.
template <class O>
constexpr int kRowsAtOnce = kByMatrixUnit<O> ? 2 * kUnit : kBlockRows;
static_assert(kTile % kRowsAtOnce<UnitPair> == 0 && kTile % kDepthsAtOnce<UnitPair> == 0);

// c[i][j] (+)= sum_k a(i, k) * b[k][j] for i < Rows, j < kBlockColumns, the depth counted in operands.
// a(i, k) = a[i * RowStride + k * DepthStride]; both strides are constants, so every address is an immediate offset.
template <class O, int RowStride, int DepthStride, bool Accumulate, int Rows = kBlockRows>
inline void multiply_block(const O* a, const O* b, std::int64_t b_stride, std::int64_t depth, Sum<O>* c,
                           std::int64_t c_stride) {
    using T = Sum<O>;
    Vec<T> sums[Rows][kBlockVectors] = {};
    for (std::int64_t k = 0; k < depth; ++k, a += DepthStride, b += b_stride) {
        Vec<O> column[kBlockVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kBlockVectors; ++v) column[v] = load<O>(b + v * kWidth<O>);
#pragma GCC unroll 12
        for (int i = 0; i < Rows; ++i) {
            const Vec<O> scalar = broadcast<O>(a[i * RowStride]);
#pragma GCC unroll 2
            for (int v = 0; v < kBlockVectors; ++v) sums[i][v] = multiply_add<O>(sums[i][v], scalar, column[v]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < kBlockVectors; ++v) {
            T* out = c + i * c_stride + v * kWidth<T>;
            store<T>(out, Accumulate ? load<T>(out) + sums[i][v] : sums[i][v]);
        }
}

// out (kTile, kTile): the inner products of two blocks of rows, y packed with its depth first, (depth, kTile), and so x,
// unless a matrix unit multiplies them, which takes x row by row, (kTile, depth).
template <class O>
inline void inner_products(const O* x, const O* y, std::int64_t depth, Sum<O>* out) {
    [[maybe_unused]] const UnitFor<O> unit;
    for (int j = 0; j < kTile; j += kBlockColumns<O>)
        for (int i = 0; i < kTile; i += kRowsAtOnce<O>) {
            Sum<O>* const block = out + i * kTile + j;
            if constexpr (kByMatrixUnit<O>)
                MatrixUnit::multiply<false, kRowsAtOnce<O>>(x + i * depth, depth, kUnit, y + j, kTile, depth, block, kTile);
            else
                multiply_block<O, 1, kTile, false>(x + i, y + j, kTile, depth, block, kTile);
        }
}

// Which products a tile of weights is wanted for.
struct Wanted {
    bool along_rows, along_columns;
};

// A tile (kTile, kTile) of weights as the operands of products: g(i, k) with k along the tile's rows or its columns.
template <class O>
struct Weights {
    Weights(const O* tile, int, int, Wanted) : along_rows(tile), along_columns(tile) {}
    const O* along_rows;     // [kTile][kTile]
    const O* along_columns;  // [kTile][kTile]
};

#if defined(__AVX512BF16__)
// Rounded to bfloat16, for the first `rows` rows and `columns` columns; a depth that is odd ends with zeros.
template <>
struct Weights<Pair> {
    Weights(float* tile, int rows, int columns, Wanted wanted) {
        for (int j = 0; j < kTile && rows % 2 != 0; ++j) tile[rows * kTile + j] = 0.0f;
        for (int i = 0; i < kTile && columns % 2 != 0; ++i) tile[i * kTile + columns] = 0.0f;
        for (int i = 0; wanted.along_rows && i < rows; ++i)
            for (int j = 0; j < kTile; j += 2 * kWidth<float>)
                store<Pair>(along_rows + (i * kTile + j) / 2, neighbours(tile + i * kTile + j));
        for (int i = 0; wanted.along_columns && i < rows; i += 2)
            for (int j = 0; j < kTile; j += kWidth<float>)
                store<Pair>(along_columns + i / 2 * kTile + j,
                            paired(load<float>(tile + i * kTile + j), load<float>(tile + (i + 1) * kTile + j)));
    }
    alignas(64) Pair along_rows[kTile * kTile / 2];     // [kTile][kTile / 2]
    alignas(64) Pair along_columns[kTile * kTile / 2];  // [kTile / 2][kTile]
};
#endif

#if FASTSSL_MATRIX_UNIT && defined(__AVX512BF16__)
// The same for a matrix unit, to which both are rows; the depth is filled up with zeros.
template <>
struct Weights<UnitPair> {
    Weights(float* tile, int rows, int columns, Wanted wanted) {
        const int whole_rows = static_cast<int>(2 * operands<UnitPair>(rows));
        const int whole_columns = static_cast<int>(2 * operands<UnitPair>(columns));
        for (int k = rows * kTile; k < whole_rows * kTile; ++k) tile[k] = 0.0f;
        for (int i = 0; i < rows; ++i)
            for (int j = columns; j < whole_columns; ++j) tile[i * kTile + j] = 0.0f;
        for (int i = 0; wanted.along_rows && i < whole_rows; ++i)
            for (int j = 0; j < kTile; j += 2 * kUnit)
                store<Pair>(along_rows + (i * kTile + j) / 2, neighbours(tile + i * kTile + j));
        for (int i = 0; wanted.along_columns && i < whole_rows; i += 2 * kUnit)
            for (int j = 0; j < kTile; j += kUnit) {
                Vec<Pair> pairs[kUnit];
#pragma GCC unroll 16
                for (int k = 0; k < kUnit; ++k) {
                    const float* upper = tile + (i + 2 * k) * kTile + j;
                    pairs[k] = paired(load<float>(upper), load<float>(upper + kTile));
                }
                store_transposed(pairs, along_columns + (j * kTile + i) / 2, kTile / 2);
            }
    }
    alignas(64) UnitPair along_rows[kTile * kTile / 2];     // [kTile][kTile / 2]
    alignas(64) UnitPair along_columns[kTile * kTile / 2];  // [kTile][kTile / 2]
};

// The same in parts, not rounded.
template <>
struct Weights<UnitParts> {
    Weights(float* tile, int rows, int columns, Wanted wanted) {
        const int whole_rows = static_cast<int>(2 * operands<UnitParts>(rows));
        const int whole_columns = static_cast<int>(2 * operands<UnitParts>(columns));
        for (int k = rows * kTile; k < whole_rows * kTile; ++k) tile[k] = 0.0f;
        for (int i = 0; i < rows; ++i)
            for (int j = columns; j < whole_columns; ++j) tile[i * kTile + j] = 0.0f;
        for (int i = 0; wanted.along_rows && i < whole_rows; ++i)
            for (int j = 0; j < kTile; j += 2 * kUnit)
                store_parts_of_neighbours(tile + i * kTile + j, along_rows + (i * kTile + j) / 2);
        for (int i = 0; wanted.along_columns && i < whole_rows; i += 2 * kUnit)
            for (int j = 0; j < kTile; j += kUnit) {
                Vec<Pair> parts[kParts][kUnit];
                for (int k = 0; k < kUnit; ++k) {
                    const float* upper = tile + (i + 2 * k) * kTile + j;
                    Vec<Pair> pairs[kParts];
                    split(load<float>(upper), load<float>(upper + kTile), pairs);
#pragma GCC unroll 3
                    for (int which = 0; which < kParts; ++which) parts[which][k] = pairs[which];
                }
                for (int which = 0; which < kParts; ++which)
                    store_transposed(parts[which], part(along_columns + (j * kTile + i) / 2, which), kParts * kTile / 2);
            }
    }
    alignas(64) UnitParts along_rows[kTile * kTile / 2];     // [kTile][kTile / 2]
    alignas(64) UnitParts along_columns[kTile * kTile / 2];  // [kTile][kTile / 2]
};
#endif

// c (Rows, kBlockColumns) += rows i, i + 1 ... of g, or columns, times b (depth, kBlockColumns), the depth in operands.
template <class O, bool Transposed, int Rows>
inline void accumulate_block(const Weights<O>& g, int i, const O* b, std::int64_t b_stride, std::int64_t depth, Sum<O>* c,
                             std::int64_t c_stride) {
    constexpr int width = kTile / kDepths<O>;
    if constexpr (kByMatrixUnit<O>)
        MatrixUnit::multiply<true, Rows>((Transposed ? g.along_columns : g.along_rows) + i * width, width, kUnit, b,
                                         b_stride, depth, c, c_stride);
    else if constexpr (Transposed)
        multiply_block<O, 1, kTile, true, Rows>(g.along_columns + i, b, b_stride, depth, c, c_stride);
    else
        multiply_block<O, width, 1, true, Rows>(g.along_rows + i * width, b, b_stride, depth, c, c_stride);
}

// out (kTile, columns) += g z, or g^T z, for g (kTile, kTile) and z (kTile, columns) with the depth in operands;
// columns a multiple of kBlockColumns.
template <class O, bool Transposed>
inline void accumulate_product(const Weights<O>& g, const O* z, std::int64_t columns, Sum<O>* out) {
    [[maybe_unused]] const UnitFor<O> unit;
    for (std::int64_t j = 0; j < columns; j += kBlockColumns<O>)
        for (int i = 0; i < kTile; i += kRowsAtOnce<O>)
            accumulate_block<O, Transposed, kRowsAtOnce<O>>(g, i, z + j, columns, kTile / kDepths<O>,
                                                            out + i * columns + j, columns);
}

}  // namespace fastssl::FASTSSL_ISA
