// Tiles of similarities and products with them: what the contrastive losses share.
//
// tile[j][i] = <inner_j, lane_i> for kTile rows of each side. The lanes lie across the vectors, so what is reduced or
// scaled for each of them needs no shuffle; the inner rows are streamed. The same packed inner rows are the broadcast
// operand of the similarities and the vector operand of the weighted sums: two small copies and no transposition.
#pragma once

#include "buffer.h"
#include "dtype.h"
#include "threads.h"
#include "tile.h"

namespace fastssl::FASTSSL_ISA {

// Columns that are packed together: the width of the register block.
template <class T>
constexpr int kPanel = kBlockColumns<T>;

inline std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

inline std::int64_t within(std::int64_t value, std::int64_t low, std::int64_t high) {
    return value < low ? low : smaller(value, high);
}

// How many tiles the similarities of so many rows with so many others make.
inline std::int64_t tiles(std::int64_t rows, std::int64_t others) {
    return ((rows + kTile - 1) / kTile) * ((others + kTile - 1) / kTile);
}

// (rows, d), contiguous.
struct RowMatrix {
    const void* data;
    std::int64_t rows, d;
    DType dtype;

    std::int64_t blocks() const { return (rows + kTile - 1) / kTile; }
    int size(std::int64_t block) const { return static_cast<int>(smaller(rows - block * kTile, kTile)); }
};

// A block of rows, scaled, as inner rows: [columns / kPanel][kTile][kPanel], zeros in the columns after d.
template <class T>
void pack_inner(const RowMatrix& matrix, std::int64_t block, T scale, T* out) {
    const std::int64_t d = matrix.d;
    const int rows = matrix.size(block);
    with_type(matrix.dtype, [&](auto type) {
        using S = decltype(type);
        const S* in = static_cast<const S*>(matrix.data) + block * kTile * d;
        for (std::int64_t first = 0; first < d; first += kPanel<T>, out += kTile * kPanel<T>)
            for (int j = 0; j < rows; ++j) {
                const S* row = in + j * d + first;
                T* packed = out + j * kPanel<T>;
                if (first + kPanel<T> <= d)
                    for (int k = 0; k < kPanel<T>; ++k) packed[k] = static_cast<T>(widen(row[k])) * scale;
                else
                    for (int k = 0; k < kPanel<T>; ++k)
                        packed[k] = first + k < d ? static_cast<T>(widen(row[k])) * scale : T(0);
            }
    });
}

// A block of rows, scaled, as lanes: [kTile / kPanel][d][kPanel], zeros in the lanes after the last row.
template <class T>
void pack_lanes(const RowMatrix& matrix, std::int64_t block, T scale, T* out) {
    const std::int64_t d = matrix.d;
    const int rows = matrix.size(block);
    with_type(matrix.dtype, [&](auto type) {
        using S = decltype(type);
        for (int i = 0; i < kTile; ++i) {
            const S* row = static_cast<const S*>(matrix.data) + (block * kTile + i) * d;
            T* lane = out + i / kPanel<T> * d * kPanel<T> + i % kPanel<T>;
            for (std::int64_t k = 0; k < d; ++k)
                lane[k * kPanel<T>] = i < rows ? static_cast<T>(widen(row[k])) * scale : T(0);
        }
    });
}

// Every block of a matrix as lanes.
template <class T>
struct Lanes {
    Lanes(const RowMatrix& matrix, T scale, int threads)
        : matrix(matrix), packed(matrix.blocks() * kTile * matrix.d) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t block = 0; block < matrix.blocks(); ++block)
            pack_lanes(matrix, block, scale, packed.get() + block * kTile * matrix.d);
    }
    const T* block(std::int64_t index) const { return packed.get() + index * kTile * matrix.d; }
    std::int64_t bytes_a_block() const { return kTile * matrix.d * static_cast<std::int64_t>(sizeof(T)); }

    RowMatrix matrix;
    Buffer<T> packed;
};

// kBlockRows inner rows against one panel of lanes.
template <class T>
inline void similarity_block(const T* inner, const T* lanes, std::int64_t d, T* tile) {
    Vec<T> sums[kBlockRows][kBlockVectors] = {};
    for (; d > 0; d -= kPanel<T>, inner += kTile * kPanel<T>) {
        const std::int64_t depth = smaller(d, kPanel<T>);
        for (std::int64_t k = 0; k < depth; ++k, lanes += kPanel<T>) {
            Vec<T> lane[kBlockVectors];
#pragma GCC unroll 2
            for (int v = 0; v < kBlockVectors; ++v) lane[v] = load<T>(lanes + v * kWidth<T>);
#pragma GCC unroll 12
            for (int j = 0; j < kBlockRows; ++j) {
                const Vec<T> scalar = broadcast<T>(inner[j * kPanel<T> + k]);
#pragma GCC unroll 2
                for (int v = 0; v < kBlockVectors; ++v) sums[j][v] += scalar * lane[v];
            }
        }
    }
#pragma GCC unroll 12
    for (int j = 0; j < kBlockRows; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < kBlockVectors; ++v) store<T>(tile + j * kTile + v * kWidth<T>, sums[j][v]);
}

// tile[j][i] = <inner_j, lane_i> for the first `rows` inner rows and `lane_count` lanes; what the register blocks write
// beyond them has no meaning.
template <class T>
void similarities(const T* inner, int rows, const T* lanes, int lane_count, std::int64_t d, T* tile) {
    for (int i = 0; i < lane_count; i += kPanel<T>)
        for (int j = 0; j < rows; j += kBlockRows)
            similarity_block<T>(inner + j * kPanel<T>, lanes + i * d, d, tile + j * kTile + i);
}

// Sums for kTile rows of `columns` columns, in panels as packed inner rows are: [columns / kPanel][kTile][kPanel].
template <class T>
inline void add_rows_to_lanes(const T* tile, const T* inner, int rows, int lane_count, std::int64_t columns, T* sums) {
    for (std::int64_t k = 0; k < columns; k += kPanel<T>, inner += kTile * kPanel<T>, sums += kTile * kPanel<T>)
        for (int i = 0; i < lane_count; i += kBlockRows)  // sums[i] += sum_j tile[j][i] inner[j]
            multiply_block<T, 1, kTile, true>(tile + i, inner, kPanel<T>, rows, sums + i * kPanel<T>, kPanel<T>);
}

// Row i of sums kept in panels, from `sums` of its block.
template <class T, class F>
inline void for_each_column(const T* sums, int i, std::int64_t d, F visit) {
    for (std::int64_t first = 0; first < d; first += kPanel<T>, sums += kTile * kPanel<T>)
        for (std::int64_t k = first; k < smaller(first + kPanel<T>, d); ++k) visit(k, sums[i * kPanel<T> + k - first]);
}

// How tasks divide `blocks` blocks of lanes times `tiles` tiles of inner rows: by the sizes alone, so that results do
// not depend on the number of threads. A task takes a group of blocks, so that a tile is packed once for all of them,
// and no more than stay in a processor's own cache with their sums. Few groups are divided further, into parts of the
// tiles, each with sums of its own.
struct LaneSplit {
    LaneSplit(std::int64_t blocks, std::int64_t tiles, std::int64_t bytes_a_block) : blocks(blocks), tiles(tiles) {
        group = within(smaller(kCache / bytes_a_block, blocks * tiles / kTasks), 1, kLargestGroup);
        parts = within(smaller(kTasks / groups(), (tiles + 1) / kLeastTiles), 1, kTasks);
    }
    std::int64_t groups() const { return (blocks + group - 1) / group; }
    std::int64_t begin(std::int64_t part) const { return part * tiles / parts; }
    std::int64_t end(std::int64_t part) const { return begin(part + 1); }

    static constexpr std::int64_t kTasks = 48, kLeastTiles = 2, kLargestGroup = 4, kCache = 1 << 20;
    std::int64_t blocks, tiles, group, parts;
};

// Weighted sums of inner rows for every block of lanes and every part of a split, from 0; `columns`: whole panels, or
// 0.
template <class T>
class LaneSums {
public:
    LaneSums(const LaneSplit& split, std::int64_t columns, int threads)
        : columns(columns), parts_(split.parts), sums_(split.blocks * split.parts * kTile * columns) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t k = 0; k < split.blocks * split.parts * kTile * columns; ++k) sums_.get()[k] = T(0);
    }
    T* at(std::int64_t block, std::int64_t part) const {
        return sums_.get() + (block * parts_ + part) * kTile * columns;
    }

    // Adds the other parts of a block to its first, in their order.
    const T* combine(std::int64_t block) const {
        for (std::int64_t part = 1; part < parts_; ++part)
            for (std::int64_t k = 0; k < kTile * columns; ++k) at(block, 0)[k] += at(block, part)[k];
        return at(block, 0);
    }

    const std::int64_t columns;

private:
    std::int64_t parts_;
    Buffer<T> sums_;
};

// The inner rows of a pass, block after block: those of one matrix, then those of another.
struct InnerRows {
    RowMatrix first, second;

    std::int64_t tiles() const { return first.blocks() + second.blocks(); }
    const RowMatrix& of(std::int64_t tile) const { return tile < first.blocks() ? first : second; }
    std::int64_t block(std::int64_t tile) const { return tile < first.blocks() ? tile : tile - first.blocks(); }
};

// Similarities of a block of lanes with the `index`-th tile of inner rows, and those rows, packed.
template <class T>
struct StreamedTile {
    std::int64_t block, part, index;
    int rows, lane_count;
    const T* inner;
    T* values;
};

// Calls visit(tile) for every tile; those of one block and part in order and in one thread, others in parallel.
template <class T, class Visit>
void stream(const Lanes<T>& lanes, const InnerRows& inner, T scale, const LaneSplit& split, int threads, Visit visit) {
    const std::int64_t d = lanes.matrix.d, packed = kTile * round_up(d, kPanel<T>), tile_size = kTile * kTile;
    Buffer<T> scratch(threads * (packed + tile_size));
    for (std::int64_t k = 0; k < threads * (packed + tile_size); ++k) scratch.get()[k] = T(0);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t part = 0; part < split.parts; ++part)
        for (std::int64_t group = 0; group < split.groups(); ++group) {
            T* panels = scratch.get() + thread_index() * (packed + tile_size);
            T* tile = panels + packed;
            const std::int64_t first = group * split.group, last = smaller(first + split.group, split.blocks);
            for (std::int64_t index = split.begin(part); index < split.end(part); ++index) {
                const RowMatrix& matrix = inner.of(index);
                const int rows = matrix.size(inner.block(index));
                pack_inner(matrix, inner.block(index), scale, panels);
                for (std::int64_t block = first; block < last; ++block) {
                    const int lane_count = lanes.matrix.size(block);
                    similarities<T>(panels, rows, lanes.block(block), lane_count, d, tile);
                    visit(StreamedTile<T>{block, part, index, rows, lane_count, panels, tile});
                }
            }
        }
}

}  // namespace fastssl::FASTSSL_ISA
