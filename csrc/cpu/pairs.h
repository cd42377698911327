// Losses of all pairs of the rows of two matrices: both sides' sums from one tile, and the order in which tiles are
// visited. tile[j][i] = <b_j, a_i>: the rows of `a` are the lanes, those of `b` the inner rows (similarity.h).
#pragma once

#include "similarity.h"

namespace fastssl::FASTSSL_ISA {

// Every block of a matrix as inner rows, zeros after the last row.
template <class O>
struct PackedRows {
    PackedRows(const RowMatrix& matrix, int threads)
        : d(matrix.d), stride(packed_size<O>(matrix.d)), packed(matrix.blocks() * stride) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t block = 0; block < matrix.blocks(); ++block) {
            O* out = packed.get() + block * stride;
            if (matrix.size(block) < kTile)
                for (std::int64_t k = 0; k < stride; ++k) out[k] = O{};
            pack_inner(matrix, block, out);
        }
    }
    Inner<O> block(std::int64_t index) const { return inner_at<O>(packed.get() + index * stride, d); }

    std::int64_t d, stride;
    Buffer<O> packed;
};

// Sums in the same order, from 0; of no rows where they are not wanted.
template <class T>
struct RowSums {
    RowSums(const RowMatrix& matrix, bool wanted, int threads)
        : matrix(matrix), stride(kTile * round_up(matrix.d, kPanel<T>)), sums(wanted ? matrix.blocks() * stride : 0) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t k = 0; k < (wanted ? matrix.blocks() * stride : 0); ++k) sums.get()[k] = T(0);
    }
    T* block(std::int64_t index) const { return sums.get() + index * stride; }

    // out (rows, d) = factor * sums, rounded to S.
    template <class S>
    void write(T factor, S* out, int threads) const {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t row = 0; row < matrix.rows; ++row)
            for_each_column(block(row / kTile), static_cast<int>(row % kTile), matrix.d, [&](std::int64_t k, T sum) {
                narrow(sum * factor, out[row * matrix.d + k]);
            });
    }

    RowMatrix matrix;
    std::int64_t stride;
    Buffer<T> sums;
};

// sums[j] += sum_i tile[j][i] lane_i, the lanes packed as inner rows.
template <class O>
inline void add_lanes_to_rows(const Weights<O>& weights, const Inner<O>& lanes, int rows, int lane_count,
                              std::int64_t d, Sum<O>* sums) {
    const O* in = lanes.along_rows;
    [[maybe_unused]] const UnitFor<O> unit;
    for (std::int64_t k = 0; k < d; k += kPanel<O>, in += kTile * kPanel<O> / kDepths<O>, sums += kTile * kPanel<O>)
        for (int j = 0; j < rows; j += kRowsAtOnce<O>)
            accumulate_block<O, false, kRowsAtOnce<O>>(weights, j, in, kPanel<O>, operands<O>(lane_count),
                                                       sums + j * kPanel<O>, kPanel<O>);
}

// Calls visit(I, J, tile) once for every pair of blocks, in rounds: in round r block I of `a` meets block I + r of `b`.
// The tiles of a round write to different rows of both and run in parallel; each row is summed in the order of the
// rounds. So there are no atomics, and the same bits whatever the number of threads. `tile` is working memory for one
// tile.
template <class T, class Visit>
void for_each_pair(std::int64_t blocks, int most_threads, Visit visit) {
    const int threads = at_most(most_threads, blocks);
    Buffer<T> tiles(threads * kTile * kTile);
    for (int k = 0; k < threads * kTile * kTile; ++k) tiles.get()[k] = T(0);
#pragma omp parallel num_threads(threads)
    for (std::int64_t round = 0; round < blocks; ++round) {
#pragma omp for schedule(dynamic, 1)
        for (std::int64_t first = 0; first < blocks; ++first)
            visit(first, (first + round) % blocks, tiles.get() + thread_index() * kTile * kTile);
    }
}

}  // namespace fastssl::FASTSSL_ISA
