// Soft assignment of chroma to quantised bins (Zhang et al. 2016, arXiv:1603.08511, section 2.1).
//
//   ids = the 5 bins nearest to (a, b), nearest first, of equally near ones the lowest
//   weights_k = exp(-d_k^2 / (2 sigma^2)) / sum over the 5, sigma = 5
//
// The plane of ab is cut into square cells, and each cell lists, in their order, the bins that can be among the 5 nearest
// of some point in it: about seven of 313 are then compared for a pixel, without a branch that depends on the data.
// A pixel outside the cells, or in one whose list would be long, is compared with every bin: the result is the same.
// Exponentials are taken of whole vectors of pixels afterwards.
//
// Reads each pixel once and writes 60 bytes for it; the lists are made anew in every call, about 25 cells a bin, unless
// the pixels are few. Computed in float (double for f64). NaN and infinity give NaN weights.
// Reference and tests: fastssl/ops/encode_ab.py, tests/ops/test_encode_ab.py.
#include "encode_ab.h"

#include <math.h>

#include "buffer.h"
#include "color.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr std::int64_t kCellsPerBin = 25;
constexpr int kListed = 15;           // with its length, a cell's list fills one cache line
constexpr std::int64_t kGroup = 256;  // pixels between two passes over the nearest cache

template <class T>
struct Bins {
    const T* a;
    const T* b;
    std::int64_t count;
    const std::int32_t* all;  // 0, 1, 2, ...
};

// A squared distance, above or at 0, and a bin as one integer: it sorts by distance, then by bin. The bits of such
// floating-point numbers are in their order, NaN last.
template <class T>
struct RankedBin;
template <>
struct RankedBin<float> {
    using bits = std::uint32_t;
    using type = std::uint64_t;
};
template <>
struct RankedBin<double> {
    using bits = std::uint64_t;
    __extension__ using type = unsigned __int128;
};

template <class T>
inline typename RankedBin<T>::type ranked(T distance, std::int32_t id) {
    typename RankedBin<T>::bits bits;
    std::memcpy(&bits, &distance, sizeof bits);
    return static_cast<typename RankedBin<T>::type>(bits) << 32 | static_cast<std::uint32_t>(id);
}

template <class T>
inline T distance_of(typename RankedBin<T>::type rank) {
    const auto bits = static_cast<typename RankedBin<T>::bits>(rank >> 32);
    T distance;
    std::memcpy(&distance, &bits, sizeof distance);
    return distance;
}

template <class T>
struct Nearest {
    typename RankedBin<T>::type rank[kNearest];  // rising
};

// The kNearest of the listed bins. Rare tells that few of them enter: then a branch is cheaper than passing through.
template <class T, bool Rare>
inline Nearest<T> nearest(T a, T b, const Bins<T>& bins, const std::int32_t* list, std::int64_t count) {
    Nearest<T> best;
    for (int i = 0; i < kNearest; ++i) best.rank[i] = ranked<T>(T(__builtin_inf()), i);
    for (std::int64_t m = 0; m < count; ++m) {
        const std::int32_t id = list[m];
        const T da = a - bins.a[id], db = b - bins.b[id];
        auto entering = ranked<T>(da * da + db * db, id);
        if (Rare && !(entering < best.rank[kNearest - 1])) continue;
#pragma GCC unroll 8
        for (int i = 0; i < kNearest; ++i) {
            const auto held = best.rank[i];
            best.rank[i] = entering < held ? entering : held;
            entering = entering < held ? held : entering;
        }
    }
    return best;
}

struct Cell {
    std::int32_t count;  // 0 where the list would be longer than there is room
    std::int32_t ids[kListed];
};

template <class T>
struct Grid {
    T low_a, low_b, per_unit;  // cells a unit of ab
    std::int64_t rows, columns;
    const Cell* cells;

    const Cell* find(T a, T b) const {
        const T row = (a - low_a) * per_unit, column = (b - low_b) * per_unit;
        if (!(row >= T(0) && row < static_cast<T>(rows) && column >= T(0) && column < static_cast<T>(columns)))
            return nullptr;  // NaN too
        const Cell* cell = cells + static_cast<std::int64_t>(row) * columns + static_cast<std::int64_t>(column);
        return cell->count > 0 ? cell : nullptr;
    }
};

// Squares over the bins and a sixteenth around them, about kCellsPerBin times as many as there are bins.
template <class T>
Grid<T> lay_grid(const Bins<T>& bins) {
    T low_a = bins.a[0], high_a = low_a, low_b = bins.b[0], high_b = low_b;
    for (std::int64_t i = 1; i < bins.count; ++i) {
        low_a = bins.a[i] < low_a ? bins.a[i] : low_a;
        high_a = bins.a[i] > high_a ? bins.a[i] : high_a;
        low_b = bins.b[i] < low_b ? bins.b[i] : low_b;
        high_b = bins.b[i] > high_b ? bins.b[i] : high_b;
    }
    const T wide = high_a - low_a > high_b - low_b ? high_a - low_a : high_b - low_b, margin = wide / 16;
    const double height = static_cast<double>(high_a - low_a + 2 * margin);
    const double width = static_cast<double>(high_b - low_b + 2 * margin);
    const double side = ::sqrt(height * width / static_cast<double>(kCellsPerBin * bins.count));
    if (!(side > 0 && side < 1e30)) return {low_a, low_b, T(0), 0, 0, nullptr};  // all bins are one: no cell
    return {low_a - margin, low_b - margin, static_cast<T>(1 / side), static_cast<std::int64_t>(height / side) + 1,
            static_cast<std::int64_t>(width / side) + 1, nullptr};
}

// Every point of a cell is within half a diagonal h of its centre, so its fifth bin is within D + h, where D is the
// centre's fifth distance, and a bin further than D + 2h from the centre is none of its five.
template <class T>
void list_cell(const Grid<T>& grid, const Bins<T>& bins, std::int64_t row, std::int64_t column, Cell* cell) {
    const T side = T(1) / grid.per_unit;
    const T a = grid.low_a + (static_cast<T>(row) + T(0.5)) * side, b = grid.low_b + (static_cast<T>(column) + T(0.5)) * side;
    const T fifth = distance_of<T>(nearest<T, true>(a, b, bins, bins.all, bins.count).rank[kNearest - 1]);
    // a thousandth more: a point on the border may be rounded into the next cell
    const T reach = (static_cast<T>(::sqrt(static_cast<double>(fifth))) + side * T(1.4142136)) * T(1.001);
    cell->count = 0;
    for (std::int64_t i = 0; i < bins.count; ++i) {
        const T da = a - bins.a[i], db = b - bins.b[i];
        if (!(da * da + db * db <= reach * reach)) continue;
        if (cell->count == kListed) {
            cell->count = 0;
            return;
        }
        cell->ids[cell->count++] = static_cast<std::int32_t>(i);
    }
}

// Turns the squared distances [kNearest][kGroup] of `count` pixels into weights.
template <class T>
void weigh(const T* distances, std::int64_t count, T* weights, std::int64_t plane) {
    for (std::int64_t i = 0; i < count; i += kWidth<T>) {
        Vec<T> weight[kNearest];
        for (int k = 0; k < kNearest; ++k) weight[k] = load<T>(distances + k * kGroup + i);
        weigh_bins<T, Roots<T>>(weight);
        for (int k = 0; k < kNearest; ++k) store_some<T>(weights + k * plane + i, weight[k], count - i);
    }
}

template <class T, class S>
void encode(const S* ab, const T* bin_values, std::int64_t images, std::int64_t plane, std::int64_t count,
            std::int64_t* ids, T* weights, int threads) {
    const Buffer<std::int32_t> all(count);
    for (std::int64_t i = 0; i < count; ++i) all.get()[i] = static_cast<std::int32_t>(i);
    const Bins<T> bins{bin_values, bin_values + count, count, all.get()};
    Grid<T> grid = lay_grid(bins);
    if (images * plane < grid.rows * grid.columns) grid.rows = grid.columns = 0;  // the lists would cost more
    const Buffer<Cell> cells(grid.rows * grid.columns + 1);
    grid.cells = cells.get();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < grid.rows; ++row)
        for (std::int64_t column = 0; column < grid.columns; ++column)
            list_cell(grid, bins, row, column, cells.get() + row * grid.columns + column);

    for_each_chunk(images, plane, threads, [&](std::int64_t image, std::int64_t first, std::int64_t pixels) {
        alignas(64) T distances[kNearest * kGroup] = {};
        const S* a = ab + image * 2 * plane + first;
        for (std::int64_t start = 0; start < pixels; start += kGroup) {
            const std::int64_t left = pixels - start, group = left < kGroup ? left : kGroup;
            const std::int64_t out = image * kNearest * plane + first + start;
            for (std::int64_t i = 0; i < group; ++i) {
                const T pixel_a = static_cast<T>(widen(a[start + i])), pixel_b = static_cast<T>(widen(a[plane + start + i]));
                const Cell* cell = grid.find(pixel_a, pixel_b);
                const Nearest<T> found = cell != nullptr
                                             ? nearest<T, false>(pixel_a, pixel_b, bins, cell->ids, cell->count)
                                             : nearest<T, true>(pixel_a, pixel_b, bins, bins.all, bins.count);
                for (int k = 0; k < kNearest; ++k) {
                    distances[k * kGroup + i] = distance_of<T>(found.rank[k]);
                    ids[out + k * plane + i] = static_cast<std::int64_t>(found.rank[k] & 0xffffffff);
                }
            }
            weigh(distances, group, weights + out, plane);
        }
    });
}

}  // namespace

void encode_ab(const void* ab, const void* bins, std::int64_t images, std::int64_t plane, std::int64_t count,
               DType dtype, std::int64_t* ids, void* weights, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        encode<T>(static_cast<const S*>(ab), static_cast<const T*>(bins), images, plane, count, ids,
                  static_cast<T*>(weights), threads);
    });
}

}  // namespace fastssl::FASTSSL_ISA
