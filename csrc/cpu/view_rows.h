// The rows of two views as one matrix, packed for the products of tile.h.
#pragma once

#include <type_traits>

#include "buffer.h"
#include "dtype.h"
#include "symmetric_order.h"
#include "threads.h"
#include "tile.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// e^64 = 6e27: sums of 10^9 of them, and their inverses, are normal numbers in float.
constexpr int kPlainBound = 64;

template <class T, class S>
T dot(const S* a, const S* b, std::int64_t d) {
    Vec<T> sums = {};
    std::int64_t k = 0;
    for (; k + kWidth<T> <= d; k += kWidth<T>) {
        T x[kWidth<T>], y[kWidth<T>];
        for (int lane = 0; lane < kWidth<T>; ++lane) {
            x[lane] = static_cast<T>(widen(a[k + lane]));
            y[lane] = static_cast<T>(widen(b[k + lane]));
        }
        sums += load<T>(x) * load<T>(y);
    }
    T last = T(0);
    for (; k < d; ++k) last += static_cast<T>(widen(a[k])) * static_cast<T>(widen(b[k]));
    return sum<T>(sums) + last;
}

// The two views' rows one after the other.
template <class S>
struct Views {
    const S* z0;
    const S* z1;
    std::int64_t n, d;

    const S* row(std::int64_t i) const { return i < n ? z0 + i * d : z1 + (i - n) * d; }
};

// Row after row as the products' operands: [kTile][columns] of numbers, or of pairs of neighbours in a row.
template <class O, class S>
void copy_row(const S* in, std::int64_t d, std::int64_t columns, O* out) {
    if constexpr (kDepths<O> == 1) {
        for (std::int64_t k = 0; k < d; ++k) out[k] = static_cast<O>(widen(in[k]));
        for (std::int64_t k = d; k < columns; ++k) out[k] = O(0);
    } else {
        copy_pairs(in, d, columns, out);
    }
}

// The rows of both views, padded with zeros to whole tiles, in the orders that the products read.
template <class O>
struct Rows {
    using T = Sum<O>;

    // `summed`: weighted sums of rows are wanted, not only their similarities.
    Rows(std::int64_t n, std::int64_t d, bool summed)
        : n(n),
          count(2 * n),
          d(d),
          depth(operands<O>(d)),
          blocks((count + kTile - 1) / kTile),
          columns((d + kBlockColumns<T> - 1) / kBlockColumns<T> * kBlockColumns<T>),
          summed(summed),
          by_depth(blocks * kTile * depth),
          by_row(summed ? blocks * kTile / kDepths<O> * columns : 0),
          row_after_row(kByMatrixUnit<O> ? blocks * kTile * depth : 0),
          squares(blocks) {}

    std::int64_t n, count, d, depth, blocks, columns;
    bool summed;
    Buffer<O> by_depth;       // [block][depth][kTile]
    Buffer<O> by_row;         // [block][kTile / kDepths][columns], for weighted sums
    Buffer<O> row_after_row;  // [block][kTile][depth], for a matrix unit
    Buffer<T> squares;        // [block]: the largest <z_i, z_i>

    const O* depth_block(std::int64_t block) const { return by_depth.get() + block * kTile * depth; }
    // As the first block of inner_products.
    const O* left_block(std::int64_t block) const {
        return kByMatrixUnit<O> ? row_after_row.get() + block * kTile * depth : depth_block(block);
    }
    O* row_block(std::int64_t block) const { return by_row.get() + block * kTile / kDepths<O> * columns; }
    int size(std::int64_t block) const {
        const std::int64_t left = count - block * kTile;
        return static_cast<int>(left < kTile ? left : kTile);
    }

    // While two blocks meet, each is read in both orders and its gradient added to.
    Order order() const {
        const std::int64_t read = kTile * (d + columns) * static_cast<std::int64_t>(sizeof(O)) / kDepths<O>;
        return Order(blocks, read + kTile * columns * static_cast<std::int64_t>(sizeof(T)));
    }

    // Whether no |s| of two rows exceeds kPlainBound; false where there is a NaN.
    bool plain(T scale) const {
        bool every = true;
        for (std::int64_t block = 0; block < blocks; ++block) every &= squares.get()[block] * scale <= T(kPlainBound);
        return every;
    }

    // What pack needs of working memory: a block row after row, unless one of the orders is that.
    std::int64_t scratch_size() const {
        const bool own = !kByMatrixUnit<O> && (kDepths<O> == 2 || !summed);
        return own ? kTile * columns / kDepths<O> : 0;
    }

    template <class S>
    void pack(std::int64_t block, const Views<S>& views, O* scratch) {
        T most = T(0);
        for (int i = 0; i < size(block); ++i) {
            const S* row = views.row(block * kTile + i);
            const T square = dot<T>(row, row, d);
            most = square <= most ? most : square;  // a NaN is kept
        }
        squares.get()[block] = most;
        const std::int64_t width = columns / kDepths<O>;
        O* rows = kByMatrixUnit<O>     ? row_after_row.get() + block * kTile * depth
                  : scratch_size() > 0 ? scratch
                                       : row_block(block);
        pack_rows(block, views, rows, width);
        if constexpr (kDepths<O> == 2)
            for (std::int64_t k = 0; summed && k < kTile * width; k += 2 * width)
                for (std::int64_t j = 0; j < width; j += kWidth<O>)
                    interleave(rows + k + j, rows + k + width + j, row_block(block) + k + 2 * j);
    }

private:
    // Into `rows` [kTile][width], and from there to by_depth.
    template <class S>
    void pack_rows(std::int64_t block, const Views<S>& views, O* rows, std::int64_t width) {
        for (int i = 0; i < kTile; ++i) {
            const bool real = i < size(block);
            copy_row(real ? views.row(block * kTile + i) : views.z0, real ? d : 0, width, rows + i * width);
        }
        transpose(rows, width, by_depth.get() + block * kTile * depth);
    }

    // [kTile][width] -> [depth][kTile], in squares of kWidth that stay in the nearest cache.
    void transpose(const O* row_first, std::int64_t width, O* depth_first) const {
        for (std::int64_t k0 = 0; k0 < depth; k0 += kWidth<O>) {
            const std::int64_t last = k0 + kWidth<O> < depth ? k0 + kWidth<O> : depth;
            for (int i = 0; i < kTile; i += kWidth<O>)
                if constexpr (kInParts<O>)
                    transpose_square(row_first + i * width + k0, width, depth_first + k0 * kTile + i, kTile);
                else for (std::int64_t k = k0; k < last; ++k) {
                    O line[kWidth<O>];
                    for (int lane = 0; lane < kWidth<O>; ++lane) line[lane] = row_first[(i + lane) * width + k];
                    store<O>(depth_first + k * kTile + i, load<O>(line));
                }
        }
    }
};

template <class O>
void pack_all(Rows<O>& rows, const void* z0, const void* z1, DType dtype, int most_threads) {
    const int threads = at_most(most_threads, rows.blocks);
    const Buffer<O> scratch(rows.scratch_size() * threads);  // before the threads: what cannot be had is thrown here
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t block = 0; block < rows.blocks; ++block)
        with_type(dtype, [&](auto type) {
            using S = decltype(type);
            if constexpr (kDepths<O> == 1 || kInParts<O> || std::is_same_v<S, bfloat16>)
                rows.pack(block, Views<S>{static_cast<const S*>(z0), static_cast<const S*>(z1), rows.n, rows.d},
                          scratch.get() + rows.scratch_size() * thread_index());
        });
}

}  // namespace
}  // namespace fastssl::FASTSSL_ISA
