// Label propagation over a context of frames (Caron et al. 2021, arXiv:2104.14294, appendix; Jabri et al. 2020,
// arXiv:2006.14613).
//
//   s_ij = <x_i, c_j>, features of unit length, for j in every context frame within `radius` rows and columns of i
//   N_i = the k largest s_ij, of equal ones the lowest j        out_i = sum_{j in N_i} w_j label_j / sum w_j, w = exp(s / t)
//
// The context is transposed once so that a pixel's features are contiguous, in chunks of kDepth. A thread takes tiles of
// kTileRows x kTileColumns target pixels, which are the lanes of vectors: a compact tile shares most of its window. One
// frame after the other meets a group of tiles, so that it stays in the cache. The pixels of the window's rows are
// multiplied with the tile, up to kSegment at a time, and the products compared with each lane's threshold at once; bits
// tell which lanes have a context pixel in their own window (top_k.h keeps candidates).
//
// About 2 d frames (2 radius + kTileRows) (2 radius + kTileColumns) operations a pixel. Extra memory: the context once
// more in float, and a few MB a thread; nothing grows with the square of the pixels. Accumulated in float (double for f64).
// A product that is NaN counts as infinite, so that it is chosen and its pixel's labels become NaN.
// Reference and tests: fastssl/ops/propagate_labels.py, tests/ops/test_propagate_labels.py.
#include "propagate_labels.h"

#include <math.h>

#include "buffer.h"
#include "tile.h"
#include "top_k.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr int kDepth = 64;    // features multiplied at a time
constexpr int kSegment = 60;  // pixels of a row at a time: a multiple of kBlockRows
constexpr std::int64_t kGroupBytes = 4 << 20;  // of what a thread's tiles at a time take
template <class T>
constexpr int kTileColumns = kBlockColumns<T> >= 16 ? kBlockColumns<T> / 4 : kBlockColumns<T> / 2;
template <class T>
constexpr int kTileRows = kBlockColumns<T> / kTileColumns<T>;

template <class T>
struct Frames {
    std::int64_t frames, d, height, width, radius;  // no further than a frame's other end, or below 0: no window

    std::int64_t plane() const { return height * width; }
    std::int64_t pixels() const { return frames * plane() + kBlockRows; }  // the last block may read beyond the end
    std::int64_t chunks() const { return (d + kDepth - 1) / kDepth; }
    std::int64_t tile_rows() const { return (height + kTileRows<T> - 1) / kTileRows<T>; }
    std::int64_t tile_columns() const { return (width + kTileColumns<T> - 1) / kTileColumns<T>; }
};

// 1 / length of `count` neighbouring pixels' features, which are `plane` apart, as torch.nn.functional.normalize.
template <class T, class S>
void inverse_lengths(const S* features, std::int64_t d, std::int64_t plane, std::int64_t count, T* out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = T(0);
    for (std::int64_t k = 0; k < d; ++k)
        for (std::int64_t i = 0; i < count; ++i) {
            const T x = static_cast<T>(widen(features[k * plane + i]));
            out[i] += x * x;
        }
    for (std::int64_t i = 0; i < count; ++i) {
        const T length = static_cast<T>(::sqrt(static_cast<double>(out[i])));
        out[i] = T(1) / (length < T(1e-12) ? T(1e-12) : length);
    }
}

// context -> [chunk][pixel][kDepth], of unit length; zeros after the last feature are never read.
template <class T, class S>
void transpose_context(const S* context, const Frames<T>& sizes, T* out, int threads) {
    constexpr std::int64_t group = 16;
    const std::int64_t plane = sizes.plane(), groups = (plane + group - 1) / group;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t g = 0; g < sizes.frames * groups; ++g) {
        T scales[group];
        const std::int64_t frame = g / groups, first = g % groups * group;
        const std::int64_t count = plane - first < group ? plane - first : group;
        const S* in = context + frame * sizes.d * plane + first;
        inverse_lengths(in, sizes.d, plane, count, scales);
        for (std::int64_t k = 0; k < sizes.d; ++k) {
            T* to = out + (k / kDepth * sizes.pixels() + frame * plane + first) * kDepth + k % kDepth;
            for (std::int64_t i = 0; i < count; ++i)
                to[i * kDepth] = static_cast<T>(widen(in[k * plane + i])) * scales[i];
        }
    }
}

// A tile of target pixels, and for each row and column around it the lanes that have it in their window.
template <class T>
struct Tile {
    std::int64_t top, left, first_row, last_row, first_column, last_column;

    Tile(std::int64_t index, const Frames<T>& sizes)
        : top(index / sizes.tile_columns() * kTileRows<T>), left(index % sizes.tile_columns() * kTileColumns<T>) {
        const std::int64_t reach = sizes.radius < 0 ? sizes.height + sizes.width : sizes.radius;
        first_row = top - reach > 0 ? top - reach : 0;
        first_column = left - reach > 0 ? left - reach : 0;
        const std::int64_t bottom = top + kTileRows<T> + reach, right = left + kTileColumns<T> + reach;
        last_row = bottom < sizes.height ? bottom : sizes.height;
        last_column = right < sizes.width ? right : sizes.width;
    }

    static bool near(std::int64_t a, std::int64_t b, std::int64_t radius) {
        return radius < 0 || (a - b <= radius && b - a <= radius);
    }
    std::uint32_t lanes_of_row(std::int64_t row, std::int64_t radius) const {
        std::uint32_t lanes = 0;
        for (int lane = 0; lane < kBlockColumns<T>; ++lane)
            lanes |= static_cast<std::uint32_t>(near(top + lane / kTileColumns<T>, row, radius)) << lane;
        return lanes;
    }
    std::uint32_t lanes_of_column(std::int64_t column, std::int64_t radius) const {
        std::uint32_t lanes = 0;
        for (int lane = 0; lane < kBlockColumns<T>; ++lane)
            lanes |= static_cast<std::uint32_t>(near(left + lane % kTileColumns<T>, column, radius)) << lane;
        return lanes;
    }
};

// What a tile has found, and its target pixels.
template <class T>
struct TileSpace {
    T* panel;  // [d][kBlockColumns], of unit length
    Candidates<T> candidates;
};

// One thread's working memory: for a group of tiles at once, so that a frame that was read serves all of them.
template <class T>
struct Workspace {
    Workspace(const Frames<T>& sizes, std::int64_t k, std::int64_t most, std::int64_t tiles, std::uintptr_t memory) {
        Layout layout{memory};
        const std::int64_t capacity = candidate_capacity<T>(k, most);
        panels = layout.take<T>(tiles * sizes.d * kBlockColumns<T>);
        products = layout.take<T>(kSegment * kBlockColumns<T>);
        column_lanes = layout.take<std::uint32_t>(sizes.width);
        candidates = layout.candidates<T>(tiles * kBlockColumns<T>, k, capacity);
        end = layout.end;
    }

    // Of the group's tile `index`.
    TileSpace<T> tile(std::int64_t index, std::int64_t d) const {
        return {panels + index * d * kBlockColumns<T>, candidates.from(index * kBlockColumns<T>)};
    }

    std::uintptr_t end;
    T* panels;                    // [tile][d][kBlockColumns]
    T* products;                  // [kSegment][kBlockColumns]
    std::uint32_t* column_lanes;  // [width]
    Candidates<T> candidates;
};

template <class T, class S>
void pack_tile(const S* target, const Tile<T>& tile, const Frames<T>& sizes, const TileSpace<T>& space) {
    constexpr int columns = kBlockColumns<T>;
    const std::int64_t plane = sizes.plane();
    std::int64_t pixels[columns];
    T lengths[columns];
    for (int lane = 0; lane < columns; ++lane) {
        const std::int64_t row = tile.top + lane / kTileColumns<T>, column = tile.left + lane % kTileColumns<T>;
        const bool real = row < sizes.height && column < sizes.width;
        space.candidates.begin(lane, real);
        pixels[lane] = real ? row * sizes.width + column : 0;  // beyond the frame: any pixel, whose lane is not open
    }
    for (std::int64_t k = 0; k < sizes.d; ++k)
        for (int lane = 0; lane < columns; ++lane)
            space.panel[k * columns + lane] = static_cast<T>(widen(target[k * plane + pixels[lane]]));
    inverse_lengths(space.panel, sizes.d, columns, columns, lengths);
    for (std::int64_t k = 0; k < sizes.d; ++k)
        for (int lane = 0; lane < columns; ++lane) space.panel[k * columns + lane] *= lengths[lane];
}

// products (count, kBlockColumns) (+)= rows of the context times a tile, over `depth` features; the last few rows in a
// block of a third or two.
template <class T, bool Accumulate>
void multiply_rows(const T* rows, const T* lanes, std::int64_t depth, std::int64_t count, T* products) {
    constexpr int columns = kBlockColumns<T>, third = kBlockRows / 3;
    for (; count > 2 * third; count -= kBlockRows, rows += kBlockRows * kDepth, products += kBlockRows * columns)
        multiply_block<T, kDepth, 1, Accumulate>(rows, lanes, columns, depth, products, columns);
    if (count > third)
        multiply_block<T, kDepth, 1, Accumulate, 2 * third>(rows, lanes, columns, depth, products, columns);
    else if (count > 0)
        multiply_block<T, kDepth, 1, Accumulate, third>(rows, lanes, columns, depth, products, columns);
}

// Part of a row of the window, in one frame: pixels [start, start + count) of the context, the first in `column`.
template <class T>
void compare_row(const T* context, std::int64_t start, std::int64_t column, std::int64_t count, std::uint32_t row_lanes,
                 const Frames<T>& sizes, const TileSpace<T>& tile, const Workspace<T>& space) {
    constexpr int columns = kBlockColumns<T>;
    const Vec<T> infinity = broadcast<T>(T(__builtin_inf()));
    for (std::int64_t chunk = 0; chunk < sizes.chunks(); ++chunk) {
        const T* rows = context + (chunk * sizes.pixels() + start) * kDepth;
        const T* lanes = tile.panel + chunk * kDepth * columns;
        const std::int64_t left = sizes.d - chunk * kDepth, depth = left < kDepth ? left : kDepth;
        if (chunk == 0)
            multiply_rows<T, false>(rows, lanes, depth, count, space.products);
        else
            multiply_rows<T, true>(rows, lanes, depth, count, space.products);
    }
    for (std::int64_t pixel = 0; pixel < count; ++pixel) {
        const std::uint32_t inside = row_lanes & space.column_lanes[column + pixel];
        for (int j = 0; j < columns; j += kWidth<T>) {
            const Vec<T> product = load<T>(space.products + pixel * columns + j);
            const Vec<T> value = product == product ? product : infinity;
            unsigned above = lanes_above<T>(value, load<T>(tile.candidates.thresholds + j)) & (inside >> j);
            for (; above != 0; above &= above - 1) {
                const int lane = __builtin_ctz(above);
                tile.candidates.add(j + lane, value[lane], start + pixel);
            }
        }
    }
}

// The window of a tile in one frame.
template <class T>
void compare_frame(const T* context, std::int64_t frame, const Tile<T>& tile, const Frames<T>& sizes,
                   const TileSpace<T>& found, const Workspace<T>& space) {
    for (std::int64_t column = tile.first_column; column < tile.last_column; ++column)
        space.column_lanes[column] = tile.lanes_of_column(column, sizes.radius);
    for (std::int64_t row = tile.first_row; row < tile.last_row; ++row) {
        const std::uint32_t lanes = tile.lanes_of_row(row, sizes.radius);
        for (std::int64_t column = tile.first_column; column < tile.last_column; column += kSegment) {
            const std::int64_t left = tile.last_column - column;
            compare_row(context, frame * sizes.plane() + row * sizes.width + column, column,
                        left < kSegment ? left : kSegment, lanes, sizes, found, space);
        }
    }
}

template <class T>
void write_tile(const Tile<T>& tile, const T* labels, std::int64_t classes, T temperature, const Frames<T>& sizes,
                const TileSpace<T>& space, T* out) {
    const std::int64_t plane = sizes.plane();
    for (int lane = 0; lane < kBlockColumns<T>; ++lane) {
        const std::int64_t row = tile.top + lane / kTileColumns<T>, column = tile.left + lane % kTileColumns<T>;
        if (row >= sizes.height || column >= sizes.width) continue;
        double total;
        const std::int64_t kept = space.candidates.finish(lane, temperature, &total);
        const T* weights = space.candidates.values + lane * space.candidates.capacity;
        const std::int64_t* ids = space.candidates.ids + lane * space.candidates.capacity;
        for (std::int64_t c = 0; c < classes; ++c) {
            T sum = T(0);
            for (std::int64_t i = 0; i < kept; ++i)
                sum += weights[i] * labels[(ids[i] / plane * classes + c) * plane + ids[i] % plane];
            out[c * plane + row * sizes.width + column] = sum / static_cast<T>(total);
        }
    }
}

// As many of a thread's `own` tiles as kGroupBytes hold, or one.
template <class T>
std::int64_t tiles_at_once(const Frames<T>& sizes, std::int64_t k, std::int64_t most, std::int64_t own) {
    const auto bytes = static_cast<std::int64_t>(Workspace<T>(sizes, k, most, 1, 0).end);
    return bytes >= kGroupBytes ? 1 : own * bytes > kGroupBytes ? kGroupBytes / bytes : own;
}

template <class T, class S>
void propagate(const S* target, const S* context, const T* labels, const Frames<T>& sizes, std::int64_t classes,
               std::int64_t k, T temperature, T* out, int threads) {
    const Buffer<T> transposed(sizes.chunks() * sizes.pixels() * kDepth);
    const std::int64_t most = sizes.frames * sizes.plane();
    const std::int64_t tiles = sizes.tile_rows() * sizes.tile_columns();
    const std::int64_t group = tiles_at_once(sizes, k, most, (tiles + threads - 1) / threads);
    const auto bytes = static_cast<std::int64_t>(Workspace<T>(sizes, k, most, group, 0).end);
    const Buffer<char> memory(bytes * threads);  // before the threads: what cannot be had is thrown here
    transpose_context(context, sizes, transposed.get(), threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
        const Workspace<T> space(sizes, k, most, group, reinterpret_cast<std::uintptr_t>(memory.get() + bytes * share));
        for (std::int64_t first = share; first < tiles; first += group * threads) {
            const auto each = [&](auto work) {
                for (std::int64_t i = 0; i < group && first + i * threads < tiles; ++i)
                    work(Tile<T>(first + i * threads, sizes), space.tile(i, sizes.d));
            };
            each([&](const auto& tile, const auto& own) { pack_tile(target, tile, sizes, own); });
            for (std::int64_t frame = 0; frame < sizes.frames; ++frame)
                each([&](const auto& tile, const auto& own) {
                    compare_frame(transposed.get(), frame, tile, sizes, own, space);
                });
            each([&](const auto& tile, const auto& own) {
                write_tile(tile, labels, classes, temperature, sizes, own, out);
            });
        }
    }
}

}  // namespace

void propagate_labels(const void* target, const void* context, const void* labels, std::int64_t frames, std::int64_t d,
                      std::int64_t height, std::int64_t width, std::int64_t classes, DType dtype, std::int64_t radius,
                      std::int64_t k, double temperature, void* out, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        const std::int64_t side = height > width ? height : width;
        propagate<T>(static_cast<const S*>(target), static_cast<const S*>(context), static_cast<const T*>(labels),
                     Frames<T>{frames, d, height, width, radius < side ? radius : side}, classes, k, static_cast<T>(temperature),
                     static_cast<T*>(out), threads);
    });
}

}  // namespace fastssl::FASTSSL_ISA
