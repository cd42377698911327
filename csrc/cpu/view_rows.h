// The rows of two views as one matrix, packed for the products of tile.h.
#pragma once

#include "buffer.h"
#include "dtype.h"
#include "symmetric_order.h"
#include "threads.h"
#include "tile.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// e^64 = 6e27: sums of 10^9 of them, and their inverses, are normal numbers in float.
constexpr int kPlainBound = 64;

template <class T>
T dot(const T* a, const T* b, std::int64_t columns) {
    Vec<T> sums = {};
    for (std::int64_t k = 0; k < columns; k += kWidth<T>) sums += load<T>(a + k) * load<T>(b + k);
    return sum<T>(sums);
}

// The rows of both views, padded with zeros to whole tiles, in the two orders that the products read.
template <class T>
struct Rows {
    Rows(std::int64_t n, std::int64_t d)
        : n(n),
          count(2 * n),
          d(d),
          blocks((count + kTile - 1) / kTile),
          columns((d + kBlockColumns<T> - 1) / kBlockColumns<T> * kBlockColumns<T>),
          by_depth(blocks * kTile * d),
          by_row(blocks * kTile * columns),
          squares(blocks) {}

    std::int64_t n, count, d, blocks, columns;
    Buffer<T> by_depth;  // [block][d][kTile]
    Buffer<T> by_row;    // [block][kTile][columns]
    Buffer<T> squares;   // [block]: the largest <z_i, z_i>

    const T* depth_block(std::int64_t block) const { return by_depth.get() + block * kTile * d; }
    const T* row_block(std::int64_t block) const { return by_row.get() + block * kTile * columns; }
    int size(std::int64_t block) const {
        const std::int64_t left = count - block * kTile;
        return static_cast<int>(left < kTile ? left : kTile);
    }

    // While two blocks meet, each is read in both orders and its gradient added to.
    Order order() const { return Order(blocks, kTile * (d + 2 * columns) * static_cast<std::int64_t>(sizeof(T))); }

    // Whether no |s| of two rows exceeds kPlainBound; false where there is a NaN.
    bool plain(T scale) const {
        bool every = true;
        for (std::int64_t block = 0; block < blocks; ++block) every &= squares.get()[block] * scale <= T(kPlainBound);
        return every;
    }

    template <class S>
    void pack(std::int64_t block, const S* z0, const S* z1) {
        T* row_first = by_row.get() + block * kTile * columns;
        T most = T(0);
        for (int i = 0; i < kTile; ++i) {
            const std::int64_t row = block * kTile + i;
            T* out = row_first + i * columns;
            const S* in = row < n ? z0 + row * d : z1 + (row - n) * d;
            for (std::int64_t k = 0; k < columns; ++k) out[k] = T(0);
            if (row < count)
                for (std::int64_t k = 0; k < d; ++k) out[k] = static_cast<T>(widen(in[k]));
            const T square = dot(out, out, columns);
            most = square <= most ? most : square;  // a NaN is kept
        }
        squares.get()[block] = most;
        transpose(row_first, by_depth.get() + block * kTile * d);
    }

    // [kTile][columns] -> [d][kTile], in squares of kWidth that stay in the nearest cache.
    void transpose(const T* row_first, T* depth_first) const {
        for (std::int64_t k0 = 0; k0 < d; k0 += kWidth<T>) {
            const std::int64_t last = k0 + kWidth<T> < d ? k0 + kWidth<T> : d;
            for (int i = 0; i < kTile; i += kWidth<T>)
                for (std::int64_t k = k0; k < last; ++k) {
                    T line[kWidth<T>];
                    for (int lane = 0; lane < kWidth<T>; ++lane) line[lane] = row_first[(i + lane) * columns + k];
                    store<T>(depth_first + k * kTile + i, load<T>(line));
                }
        }
    }
};

template <class T>
void pack_all(Rows<T>& rows, const void* z0, const void* z1, DType dtype, int threads) {
#pragma omp parallel for num_threads(at_most(threads, rows.blocks)) schedule(static)
    for (std::int64_t block = 0; block < rows.blocks; ++block)
        with_type(dtype, [&](auto type) {
            using S = decltype(type);
            rows.pack(block, static_cast<const S*>(z0), static_cast<const S*>(z1));
        });
}

}  // namespace
}  // namespace fastssl::FASTSSL_ISA
