// Products of small matrices that stay in registers and the nearest cache.
#pragma once

#include "operand.h"

namespace fastssl::FASTSSL_ISA {

// Rows and columns of a tile of similarities: 36 KB in float, and a multiple of every register block below.
constexpr int kTile = 96;

// The register block: kBlockRows x kBlockVectors accumulators, one broadcast and kBlockVectors operands.
constexpr int kBlockRows = kVectorRegisters == 32 ? 12 : 6;
constexpr int kBlockVectors = 2;
template <class T>
constexpr int kBlockColumns = kBlockVectors * kWidth<T>;

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

// out (kTile, kTile) = x^T y for x, y (depth, kTile): the inner products of two blocks of rows, each packed with its
// depth first.
template <class O>
inline void inner_products(const O* x, const O* y, std::int64_t depth, Sum<O>* out) {
    for (int j = 0; j < kTile; j += kBlockColumns<O>)
        for (int i = 0; i < kTile; i += kBlockRows)
            multiply_block<O, 1, kTile, false>(x + i, y + j, kTile, depth, out + i * kTile + j, kTile);
}

// A tile (kTile, kTile) of weights as the operands of products: g(i, k) with k along the tile's rows or its columns.
template <class O>
struct Weights {
    Weights(const O* tile, int, int) : along_rows(tile), along_columns(tile) {}
    const O* along_rows;     // [kTile][kTile]
    const O* along_columns;  // [kTile][kTile]
};

#if defined(__AVX512BF16__)
// Rounded to bfloat16, for the first `rows` rows and `columns` columns; a depth that is odd ends with zeros.
template <>
struct Weights<Pair> {
    Weights(float* tile, int rows, int columns) {
        for (int j = 0; j < kTile && rows % 2 != 0; ++j) tile[rows * kTile + j] = 0.0f;
        for (int i = 0; i < kTile && columns % 2 != 0; ++i) tile[i * kTile + columns] = 0.0f;
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < kTile; j += 2 * kWidth<float>)
                store<Pair>(along_rows + (i * kTile + j) / 2, neighbours(tile + i * kTile + j));
        for (int i = 0; i < rows; i += 2)
            for (int j = 0; j < kTile; j += kWidth<float>)
                store<Pair>(along_columns + i / 2 * kTile + j,
                            paired(load<float>(tile + i * kTile + j), load<float>(tile + (i + 1) * kTile + j)));
    }
    alignas(64) Pair along_rows[kTile * kTile / 2];     // [kTile][kTile / 2]
    alignas(64) Pair along_columns[kTile * kTile / 2];  // [kTile / 2][kTile]
};
#endif

// out (kTile, columns) += g z, or g^T z, for g (kTile, kTile) and z (kTile, columns) with the depth in operands;
// columns a multiple of kBlockColumns.
template <class O, bool Transposed>
inline void accumulate_product(const Weights<O>& g, const O* z, std::int64_t columns, Sum<O>* out) {
    constexpr int depth = kTile / kDepths<O>;
    for (std::int64_t j = 0; j < columns; j += kBlockColumns<O>)
        for (int i = 0; i < kTile; i += kBlockRows) {
            if constexpr (Transposed)
                multiply_block<O, 1, kTile, true>(g.along_columns + i, z + j, columns, depth, out + i * columns + j,
                                                  columns);
            else
                multiply_block<O, depth, 1, true>(g.along_rows + i * depth, z + j, columns, depth,
                                                  out + i * columns + j, columns);
        }
}

}  // namespace fastssl::FASTSSL_ISA
