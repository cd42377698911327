// Products of small matrices that stay in registers and the nearest cache.
#pragma once

#include "simd.h"

namespace fastssl::FASTSSL_ISA {

// Rows and columns of a tile of similarities: 36 KB in float, and a multiple of every register block below.
constexpr int kTile = 96;

// The register block: kBlockRows x kBlockVectors accumulators, one broadcast and kBlockVectors operands.
constexpr int kBlockRows = kVectorRegisters == 32 ? 12 : 6;
constexpr int kBlockVectors = 2;
template <class T>
constexpr int kBlockColumns = kBlockVectors * kWidth<T>;

// c[i][j] (+)= sum_k a(i, k) * b[k][j] for i < kBlockRows, j < kBlockColumns.
// a(i, k) = a[i * RowStride + k * DepthStride]; both strides are constants, so every address is an immediate offset.
template <class T, int RowStride, int DepthStride, bool Accumulate>
inline void multiply_block(const T* a, const T* b, std::int64_t b_stride, std::int64_t depth, T* c,
                           std::int64_t c_stride) {
    Vec<T> sums[kBlockRows][kBlockVectors] = {};
    for (std::int64_t k = 0; k < depth; ++k, a += DepthStride, b += b_stride) {
        Vec<T> column[kBlockVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kBlockVectors; ++v) column[v] = load<T>(b + v * kWidth<T>);
#pragma GCC unroll 12
        for (int i = 0; i < kBlockRows; ++i) {
            const Vec<T> scalar = broadcast<T>(a[i * RowStride]);
#pragma GCC unroll 2
            for (int v = 0; v < kBlockVectors; ++v) sums[i][v] += scalar * column[v];
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kBlockRows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < kBlockVectors; ++v) {
            T* out = c + i * c_stride + v * kWidth<T>;
            store<T>(out, Accumulate ? load<T>(out) + sums[i][v] : sums[i][v]);
        }
}

// out (kTile, kTile) = x^T y for x, y (depth, kTile): the inner products of two blocks of rows, each packed with its
// depth first.
template <class T>
inline void inner_products(const T* x, const T* y, std::int64_t depth, T* out) {
    for (int j = 0; j < kTile; j += kBlockColumns<T>)
        for (int i = 0; i < kTile; i += kBlockRows)
            multiply_block<T, 1, kTile, false>(x + i, y + j, kTile, depth, out + i * kTile + j, kTile);
}

// out (kTile, columns) += g z, or g^T z, for g (kTile, kTile) and z (kTile, columns); columns a multiple of kBlockColumns.
template <class T, bool Transposed>
inline void accumulate_product(const T* g, const T* z, std::int64_t columns, T* out) {
    for (std::int64_t j = 0; j < columns; j += kBlockColumns<T>)
        for (int i = 0; i < kTile; i += kBlockRows) {
            if constexpr (Transposed)
                multiply_block<T, 1, kTile, true>(g + i, z + j, columns, kTile, out + i * columns + j, columns);
            else
                multiply_block<T, kTile, 1, true>(g + i * kTile, z + j, columns, kTile, out + i * columns + j, columns);
        }
}

}  // namespace fastssl::FASTSSL_ISA
