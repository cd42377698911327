// Tiles of similarities and products with them: what the contrastive losses share.
//
// tile[j][i] = <inner_j, lane_i> for kTile rows of each side. The lanes lie across the vectors, so what is reduced or
// scaled for each of them needs no shuffle; the inner rows are streamed. Unless operands are pairs, the same packed inner
// rows are the broadcast operand of the similarities and the vector operand of the weighted sums: two small copies and
// no transposition.
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
    Numbers numbers() const { return {data, rows * d, dtype}; }
};

// A block of rows, packed as inner rows: the broadcast operand of the similarities and the vector operand of the
// weighted sums.
template <class O>
struct Inner {
    const O* along_features;  // [columns / kPanel][kTile][kPanel / kDepths], neighbours in a row paired
    const O* along_rows;      // [columns / kPanel][kTile / kDepths][kPanel], neighbouring rows paired
};

// Operands that one block of packed inner rows takes, in both orders where they differ.
template <class O>
std::int64_t packed_size(std::int64_t d) {
    return kTile * round_up(d, kPanel<O>);
}

template <class O>
Inner<O> inner_at(const O* packed, std::int64_t d) {
    return {packed, kDepths<O> == 1 ? packed : packed + packed_size<O>(d) / 2};
}

// Packs a block of rows in pairs, in both orders.
template <class O>
void pack_pairs(const RowMatrix& matrix, std::int64_t block, O* out) {
    constexpr int panel = kPanel<O>, width = panel / kDepths<O>;
    const std::int64_t d = matrix.d;
    const int rows = matrix.size(block), filled = static_cast<int>(operands<O>(rows)) * kDepths<O>;
    O* pairs = out + packed_size<O>(d) / 2;
    with_pairs_of<O>(matrix.dtype, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(matrix.data) + block * kTile * d;
        for (std::int64_t first = 0; first < d; first += panel, out += kTile * width, pairs += kTile * width) {
            const std::int64_t count = smaller(panel, d - first);
            for (int j = 0; j < rows; ++j) copy_pairs(in + j * d + first, count, width, out + j * width);
            for (int k = rows * width; k < filled * width; ++k) out[k] = O{};
            for (int j = 0; j < filled; j += 2) interleave(out + j * width, out + (j + 1) * width, pairs + j * width);
        }
    });
}

// Packs a block of rows as numbers.
template <class O>
void pack_numbers(const RowMatrix& matrix, std::int64_t block, O* out) {
    const std::int64_t d = matrix.d;
    const int rows = matrix.size(block);
    with_type(matrix.dtype, [&](auto type) {
        using S = decltype(type);
        const S* in = static_cast<const S*>(matrix.data) + block * kTile * d;
        for (std::int64_t first = 0; first < d; first += kPanel<O>, out += kTile * kPanel<O>)
            for (int j = 0; j < rows; ++j) {
                const S* row = in + j * d + first;
                O* packed = out + j * kPanel<O>;
                if (first + kPanel<O> <= d)
                    for (int k = 0; k < kPanel<O>; ++k) packed[k] = static_cast<O>(widen(row[k]));
                else
                    for (int k = 0; k < kPanel<O>; ++k) packed[k] = first + k < d ? static_cast<O>(widen(row[k])) : O(0);
            }
    });
}

// Packs a block of rows; zeros in the columns after d, and where rows are paired in those after the last that are read.
template <class O>
void pack_inner(const RowMatrix& matrix, std::int64_t block, O* out) {
    if constexpr (kDepths<O> == 1)
        pack_numbers(matrix, block, out);
    else
        pack_pairs(matrix, block, out);
}

// A block of rows as lanes: [kTile / kPanel][depth][kPanel], zeros in the lanes after the last row.
template <class O>
void pack_lanes(const RowMatrix& matrix, std::int64_t block, O* out) {
    const std::int64_t d = matrix.d, depth = operands<O>(d);
    const int rows = matrix.size(block);
    with_type(matrix.dtype, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(matrix.data) + block * kTile * d;
        const auto lanes_from = [&](int i) { return out + i / kPanel<O> * depth * kPanel<O> + i % kPanel<O>; };
        if constexpr (kInParts<O>)
            for (int i = 0; i < kTile; i += kUnit)
                for (std::int64_t k = 0; k < depth; k += kUnit) {
                    O square[kUnit * kUnit] = {};
                    for (int lane = 0; i + lane < rows && lane < kUnit; ++lane)
                        copy_pairs(in + (i + lane) * d + 2 * k, d - 2 * k, kUnit, square + lane * kUnit);
                    transpose_square(square, kUnit, lanes_from(i) + k * kPanel<O>, kPanel<O>);
                }
        else
            for (int i = 0; i < kTile; ++i)
                for (std::int64_t k = 0; k < depth; ++k)
                    lanes_from(i)[k * kPanel<O>] = i < rows ? operand<O>(in + i * d, k, d) : O{};
    });
}

// Every block of a matrix as lanes.
template <class O>
struct Lanes {
    Lanes(const RowMatrix& matrix, int threads)
        : matrix(matrix), size(kTile * operands<O>(matrix.d)), packed(matrix.blocks() * size) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t block = 0; block < matrix.blocks(); ++block)
            pack_lanes(matrix, block, packed.get() + block * size);
    }
    const O* block(std::int64_t index) const { return packed.get() + index * size; }
    // With as many sums: what a processor's cache holds while inner rows stream by.
    std::int64_t bytes_a_block() const {
        return size * static_cast<std::int64_t>(sizeof(O)) +
               kTile * matrix.d * static_cast<std::int64_t>(sizeof(Sum<O>));
    }

    RowMatrix matrix;
    std::int64_t size;  // of a block
    Buffer<O> packed;
};

// kRowsAtOnce inner rows against one panel of lanes.
template <class O>
inline void similarity_block(const O* inner, const O* lanes, std::int64_t depth, Sum<O> scale, Sum<O>* tile) {
    using T = Sum<O>;
    constexpr int stride = kPanel<O> / kDepths<O>;
    Vec<T> sums[kBlockRows][kBlockVectors] = {};
    for (; depth > 0; depth -= stride, inner += kTile * stride) {
        const std::int64_t steps = smaller(depth, stride);
        for (std::int64_t k = 0; k < steps; ++k, lanes += kPanel<O>) {
            Vec<O> lane[kBlockVectors];
#pragma GCC unroll 2
            for (int v = 0; v < kBlockVectors; ++v) lane[v] = load<O>(lanes + v * kWidth<O>);
#pragma GCC unroll 12
            for (int j = 0; j < kBlockRows; ++j) {
                const Vec<O> scalar = broadcast<O>(inner[j * stride + k]);
#pragma GCC unroll 2
                for (int v = 0; v < kBlockVectors; ++v) sums[j][v] = multiply_add<O>(sums[j][v], scalar, lane[v]);
            }
        }
    }
#pragma GCC unroll 12
    for (int j = 0; j < kBlockRows; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < kBlockVectors; ++v) store<T>(tile + j * kTile + v * kWidth<T>, sums[j][v] * scale);
}

// The same by a matrix unit.
template <class O>
inline void unit_similarity_block(const O* inner, const O* lanes, std::int64_t depth, float scale, float* tile) {
    constexpr int rows = kRowsAtOnce<O>, panel = kPanel<O>;
    MatrixUnit::multiply<false, rows>(inner, kUnit, kTile * kUnit, lanes, panel, depth, tile, kTile);
    for (int j = 0; j < rows; ++j)
        for (int i = 0; i < panel; i += kWidth<float>)
            store<float>(tile + j * kTile + i, load<float>(tile + j * kTile + i) * scale);
}

// tile[j][i] = scale <inner_j, lane_i> for the first `rows` inner rows and `lane_count` lanes; what the register blocks
// write beyond them has no meaning.
template <class O>
void similarities(const Inner<O>& inner, int rows, const O* lanes, int lane_count, std::int64_t d, Sum<O> scale,
                  Sum<O>* tile) {
    const std::int64_t depth = operands<O>(d);
    [[maybe_unused]] const UnitFor<O> unit;
    for (int i = 0; i < lane_count; i += kPanel<O>)
        for (int j = 0; j < rows; j += kRowsAtOnce<O>) {
            const O* const block = inner.along_features + j * kPanel<O> / kDepths<O>;
            if constexpr (kByMatrixUnit<O>)
                unit_similarity_block(block, lanes + i * depth, depth, scale, tile + j * kTile + i);
            else
                similarity_block(block, lanes + i * depth, depth, scale, tile + j * kTile + i);
        }
}

// Sums for kTile rows of `columns` columns, in panels as packed inner rows are: [columns / kPanel][kTile][kPanel].
template <class O>
inline void add_rows_to_lanes(const Weights<O>& weights, const Inner<O>& inner, int rows, int lane_count,
                              std::int64_t columns, Sum<O>* sums) {
    constexpr int whole = kRowsAtOnce<O>;
    const O* in = inner.along_rows;
    [[maybe_unused]] const UnitFor<O> unit;
    for (std::int64_t k = 0; k < columns; k += kPanel<O>, in += kTile * kPanel<O> / kDepths<O>, sums += kTile * kPanel<O>)
        for (int i = 0; i < lane_count; i += whole) {  // sums[i] += sum_j tile[j][i] inner[j]
            Sum<O>* out = sums + i * kPanel<O>;
            if (lane_count - i > whole / 2)
                accumulate_block<O, true, whole>(weights, i, in, kPanel<O>, operands<O>(rows), out, kPanel<O>);
            else  // the last few lanes
                accumulate_block<O, true, whole / 2>(weights, i, in, kPanel<O>, operands<O>(rows), out, kPanel<O>);
        }
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
template <class O>
struct StreamedTile {
    std::int64_t block, part, index;
    int rows, lane_count;
    Inner<O> inner;
    Sum<O>* values;
};

// Calls visit(tile) for every tile; those of one block and part in order and in one thread, others in parallel.
template <class O, class Visit>
void stream(const Lanes<O>& lanes, const InnerRows& inner, Sum<O> scale, const LaneSplit& split, int threads,
            Visit visit) {
    const std::int64_t d = lanes.matrix.d, packed = packed_size<O>(d), tile_size = kTile * kTile;
    Buffer<O> panels(threads * packed);
    Buffer<Sum<O>> values(threads * tile_size);
    for (std::int64_t k = 0; k < threads * packed; ++k) panels.get()[k] = O{};
    for (std::int64_t k = 0; k < threads * tile_size; ++k) values.get()[k] = Sum<O>(0);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t part = 0; part < split.parts; ++part)
        for (std::int64_t group = 0; group < split.groups(); ++group) {
            O* const panel = panels.get() + thread_index() * packed;
            Sum<O>* const tile = values.get() + thread_index() * tile_size;
            const Inner<O> rows_of_tile = inner_at<O>(panel, d);
            const std::int64_t first = group * split.group, last = smaller(first + split.group, split.blocks);
            for (std::int64_t index = split.begin(part); index < split.end(part); ++index) {
                const RowMatrix& matrix = inner.of(index);
                const int rows = matrix.size(inner.block(index));
                pack_inner(matrix, inner.block(index), panel);
                for (std::int64_t block = first; block < last; ++block) {
                    const int lane_count = lanes.matrix.size(block);
                    similarities<O>(rows_of_tile, rows, lanes.block(block), lane_count, d, scale, tile);
                    visit(StreamedTile<O>{block, part, index, rows, lane_count, rows_of_tile, tile});
                }
            }
        }
}

}  // namespace fastssl::FASTSSL_ISA
