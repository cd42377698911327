// NT-Xent of two views, forward and backward (Chen et al. 2020, arXiv:2002.05709, eq. 1).
//
//   rows z = [z0; z1] (R = 2n, d), s_ij = <z_i, z_j> / t, own column left out
//   lse_i = log sum_{j != i} exp(s_ij)          loss = mean_i (lse_i - s_{i, i +- n})
//   P_ij = exp(s_ij - lse_i), G = P + P^T - 2 [j is i's other view]        dloss/dz = G z / (t R)
//
// s and G are symmetric, so only tiles (I, J >= I) of kTile x kTile are computed, in one tile of working memory a
// thread: R^2 d floating-point operations forward and 3 R^2 d backward. Tiles are visited in rounds (`Order`) in which
// each block has one partner, so the tiles of a round write disjoint rows and run in parallel, and each row is summed
// in the order of the rounds: no atomic sums, and the same bits whatever the number of threads.
//
// Where no |s| can exceed kPlainBound (by the longest row, and so for all normalised rows with t >= 1/64),
// exp(s) is summed as it is. Elsewhere each tile's exponentials are shifted by its maxima.
//
// Accumulated in float (double for f64). Extra memory: 3 R d elements; nothing grows with R^2.
// Reference and tests: fastssl/ops/nt_xent.py, tests/ops/test_nt_xent.py.
#include "nt_xent.h"

#include <math.h>
#include <sched.h>

#include "buffer.h"
#include "tile.h"

namespace fastssl::FASTSSL_ISA {
namespace {

template <class T>
constexpr T kLowest = T(-3.4e38);  // a finite minus infinity: differences of two of them are not NaN

// e^64 = 6e27: sums of 10^9 of them, and their inverses, are normal numbers in float.
constexpr int kPlainBound = 64;

// exp(-kSafeSpread) is a normal number in float with room to spare, so one shift serves a whole tile within it.
constexpr int kSafeSpread = 60;

// Waits until *counter has reached `count`. Whoever is waited for is at work already, so it is short.
inline void wait_for(const std::int64_t* counter, std::int64_t count) {
    for (int spins = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) < count; ++spins)
        if (spins > 1000) sched_yield();  // with more threads than processors
}

// The order in which the pairs of blocks are visited. Blocks form groups, small enough that what two groups hold stays in
// a processor's own cache. In outer round r group A meets group (r - A) mod groups; while two groups meet, block a of
// the one meets block (q - a) mod size of the other in inner round q. So each block has one partner in each round.
struct Order {
    Order(std::int64_t blocks, std::int64_t bytes_a_block)
        : blocks(blocks),
          size(bytes_a_block < kCache / 16 ? 8 : bytes_a_block < kCache / 2 ? kCache / (2 * bytes_a_block) : 1),
          groups((blocks + size - 1) / size) {}

    static constexpr std::int64_t kCache = 5 << 18;  // bytes: most of a core's second-level cache
    std::int64_t blocks, size, groups;
};

// Calls visit(I, J) once for every pair I <= J of blocks. Each thread takes the next meeting of two groups, or where these
// are too few the next tile; a tile waits only for its own blocks' tiles of earlier rounds, and these have begun.
template <class Visit>
void for_each_tile(const Order& order, int threads, Visit visit) {
    Buffer<std::int64_t> rounds(order.groups * order.size);  // done, for each block
    for (std::int64_t i = 0; i < order.groups * order.size; ++i) rounds.get()[i] = 0;
    const std::int64_t tiles = order.size * order.size;
    const std::int64_t taken = order.groups >= 4 * threads ? tiles : 1;  // at a time
    std::int64_t next = 0;
#pragma omp parallel num_threads(threads)
    for (;;) {
        const std::int64_t begin = __atomic_fetch_add(&next, taken, __ATOMIC_RELAXED);
        const std::int64_t outer = begin / tiles / order.groups, group = begin / tiles % order.groups;
        const std::int64_t partner = (outer + order.groups - group) % order.groups;
        if (outer >= order.groups) break;
        if (group > partner) continue;
        for (std::int64_t tile = begin % tiles; tile < begin % tiles + taken; ++tile) {
            const std::int64_t inner = tile / order.size, a = tile % order.size;
            const std::int64_t b = (inner + order.size - a) % order.size;
            if (group == partner && a > b) continue;
            const std::int64_t first = group * order.size + a, second = partner * order.size + b;
            const std::int64_t round = outer * order.size + inner;
            wait_for(rounds.get() + first, round);
            wait_for(rounds.get() + second, round);
            if (first < order.blocks && second < order.blocks) visit(first, second);
            __atomic_store_n(rounds.get() + first, round + 1, __ATOMIC_RELEASE);
            __atomic_store_n(rounds.get() + second, round + 1, __ATOMIC_RELEASE);
        }
    }
}

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
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t block = 0; block < rows.blocks; ++block)
        with_type(dtype, [&](auto type) {
            using S = decltype(type);
            rows.pack(block, static_cast<const S*>(z0), static_cast<const S*>(z1));
        });
}

// Each row's running maximum and its sum of exp(s - maximum).
template <class T>
struct LogSumExp {
    T* maximum;
    T* total;

    // Adds, for each of the kTile rows at `row`, sums[i] * exp(shifts[i]).
    void add(std::int64_t row, const T* shifts, const T* sums) {
        for (int i = 0; i < kTile; i += kWidth<T>) {
            const Vec<T> old_max = load<T>(maximum + row + i), shift = load<T>(shifts + i);
            const Vec<T> new_max = vmax(old_max, shift);
            store<T>(total + row + i, load<T>(total + row + i) * exp<T>(old_max - new_max) +
                                          load<T>(sums + i) * exp<T>(shift - new_max));
            store<T>(maximum + row + i, new_max);
        }
    }
};

// Sets to `outside` what is no pair: padding, and a row with itself.
template <class T>
void mask(T* tile, T outside, int rows, int columns, bool diagonal) {
    for (int i = 0; i < kTile; ++i) {
        for (int j = i < rows ? columns : 0; j < kTile; ++j) tile[i * kTile + j] = outside;
        if (diagonal) tile[i * kTile + i] = outside;
    }
}

// The similarities of two blocks, with minus infinity for what is no pair.
template <class T>
void similarities(const Rows<T>& rows, std::int64_t first, std::int64_t second, T scale, T* tile) {
    inner_products<T>(rows.depth_block(first), rows.depth_block(second), rows.d, tile);
    for (int i = 0; i < kTile * kTile; i += kWidth<T>) store<T>(tile + i, load<T>(tile + i) * scale);
    mask<T>(tile, T(-__builtin_inf()), rows.size(first), rows.size(second), first == second);
}

// Replaces inner products by their exponentials, and by 0 where there is no pair.
template <class T>
void exponentials(const Rows<T>& rows, std::int64_t first, std::int64_t second, T scale, T* tile) {
    inner_products<T>(rows.depth_block(first), rows.depth_block(second), rows.d, tile);
    for (int i = 0; i < kTile * kTile; i += kWidth<T>) store<T>(tile + i, exp<T>(load<T>(tile + i) * scale));
    if (first == second || rows.size(second) < kTile)
        mask<T>(tile, T(0), rows.size(first), rows.size(second), first == second);
}

// sums (kTile) += the sums of the tile's rows, or of its columns.
template <class T>
void add_row_sums(const T* tile, T* sums) {
    for (int i = 0; i < kTile; ++i) {
        Vec<T> row = {};
        for (int j = 0; j < kTile; j += kWidth<T>) row += load<T>(tile + i * kTile + j);
        sums[i] += sum<T>(row);
    }
}

template <class T>
void add_column_sums(const T* tile, T* sums) {
    constexpr int vectors = kTile / kWidth<T>;
    Vec<T> columns[vectors] = {};
    for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 6
        for (int v = 0; v < vectors; ++v) columns[v] += load<T>(tile + i * kTile + v * kWidth<T>);
    for (int v = 0; v < vectors; ++v) store<T>(sums + v * kWidth<T>, load<T>(sums + v * kWidth<T>) + columns[v]);
}

template <class T>
void extremes(const T* tile, T* low, T* high) {
    Vec<T> minimum = load<T>(tile), maximum = minimum;
    for (int i = kWidth<T>; i < kTile * kTile; i += kWidth<T>) {
        minimum = vmin(minimum, load<T>(tile + i));
        maximum = vmax(maximum, load<T>(tile + i));
    }
    *low = -largest<T>(-minimum);
    *high = largest<T>(maximum);
}

// One shift for the whole tile: one exponential serves the row's sum and the column's.
template <class T>
void sum_with_one_shift(const T* tile, T shift, T* row_sums, T* column_sums) {
    for (int j = 0; j < kTile; ++j) column_sums[j] = T(0);
    for (int i = 0; i < kTile; ++i) {
        Vec<T> row = {};
        for (int j = 0; j < kTile; j += kWidth<T>) {
            const Vec<T> e = exp<T>(load<T>(tile + i * kTile + j) - shift);
            row += e;
            store<T>(column_sums + j, load<T>(column_sums + j) + e);
        }
        row_sums[i] = sum<T>(row);
    }
}

// A shift for each row and each column, for tiles whose values lie too far apart for one.
template <class T>
void sum_with_own_shifts(const T* tile, T* row_shifts, T* row_sums, T* column_shifts, T* column_sums) {
    for (int j = 0; j < kTile; ++j) column_shifts[j] = kLowest<T>, column_sums[j] = T(0);
    for (int i = 0; i < kTile; ++i) {
        Vec<T> row = broadcast<T>(kLowest<T>);
        for (int j = 0; j < kTile; j += kWidth<T>) {
            const Vec<T> x = load<T>(tile + i * kTile + j);
            row = vmax(row, x);
            store<T>(column_shifts + j, vmax(load<T>(column_shifts + j), x));
        }
        row_shifts[i] = largest<T>(row);
    }
    for (int i = 0; i < kTile; ++i) {
        Vec<T> row = {};
        for (int j = 0; j < kTile; j += kWidth<T>) {
            const Vec<T> x = load<T>(tile + i * kTile + j);
            row += exp<T>(x - row_shifts[i]);
            store<T>(column_sums + j, load<T>(column_sums + j) + exp<T>(x - load<T>(column_shifts + j)));
        }
        row_sums[i] = sum<T>(row);
    }
}

template <class T>
void add_shifted_tile(const Rows<T>& rows, std::int64_t first, std::int64_t second, T scale, LogSumExp<T> lse) {
    alignas(64) T tile[kTile * kTile];
    alignas(64) T row_shifts[kTile], row_sums[kTile], column_shifts[kTile], column_sums[kTile];
    similarities(rows, first, second, scale, tile);
    T low, high;
    extremes(tile, &low, &high);
    if (high - low <= kSafeSpread) {
        for (int i = 0; i < kTile; ++i) row_shifts[i] = column_shifts[i] = high;
        sum_with_one_shift(tile, high, row_sums, column_sums);
    } else {
        sum_with_own_shifts(tile, row_shifts, row_sums, column_shifts, column_sums);
    }
    lse.add(first * kTile, row_shifts, row_sums);
    if (first != second) lse.add(second * kTile, column_shifts, column_sums);
}

template <class T>
void add_plain_tile(const Rows<T>& rows, std::int64_t first, std::int64_t second, T scale, T* total) {
    alignas(64) T tile[kTile * kTile];
    exponentials(rows, first, second, scale, tile);
    add_row_sums(tile, total + first * kTile);
    if (first != second) add_column_sums(tile, total + second * kTile);
}

template <class T>
void forward(const void* z0, const void* z1, std::int64_t n, std::int64_t d, DType dtype, double temperature, T* loss,
             T* lse, int threads) {
    Rows<T> rows(n, d);
    pack_all(rows, z0, z1, dtype, threads);
    const std::int64_t padded = rows.blocks * kTile;
    Buffer<T> maximum(padded), total(padded);
    const T scale = static_cast<T>(1.0 / temperature);
    const bool plain = rows.plain(scale);
    for (std::int64_t i = 0; i < padded; ++i) maximum.get()[i] = plain ? T(0) : kLowest<T>, total.get()[i] = T(0);
    for_each_tile(rows.order(), threads, [&](std::int64_t first, std::int64_t second) {
        if (plain)
            add_plain_tile(rows, first, second, scale, total.get());
        else
            add_shifted_tile(rows, first, second, scale, LogSumExp<T>{maximum.get(), total.get()});
    });
    double sum_of_losses = 0;
    for (std::int64_t i = 0; i < rows.count; ++i) {
        const double log_total = ::log(static_cast<double>(total.get()[i]));
        const double whole = static_cast<double>(maximum.get()[i]) + log_total;
        // two parts that together hold what one would round: the backward subtracts one after the other
        lse[i] = plain ? static_cast<T>(whole) : maximum.get()[i];
        lse[rows.count + i] = static_cast<T>(plain ? whole - static_cast<double>(lse[i]) : log_total);
        const std::int64_t other = i < n ? i + n : i - n;
        const T* z = rows.by_row.get();
        const T positive = dot(z + i * rows.columns, z + other * rows.columns, rows.columns) * scale;
        // both nearly cancel where the loss is small: subtract the positive from the maximum first
        sum_of_losses += static_cast<double>(maximum.get()[i] - positive) + log_total;
    }
    *loss = static_cast<T>(sum_of_losses / static_cast<double>(rows.count));
}

// The two parts of each row's log-sum-exp, as forward returns them.
template <class T>
struct RowLse {
    const T* maximum;
    const T* log_total;
};

// The lowest and the highest log-sum-exp of kTile rows.
template <class T>
void range(RowLse<T> lse, T* low, T* high) {
    for (int i = 0; i < kTile; ++i) {
        const T value = lse.maximum[i] + lse.log_total[i];
        if (value < *low) *low = value;
        if (value > *high) *high = value;
    }
}

// Replaces scaled similarities by G. P_ji = P_ij exp(lse_i - lse_j): one exponential an element serves both, unless
// the log-sum-exps of the tile lie too far apart for the product to be exact. Maxima are subtracted first, where the
// difference is exact.
template <class T>
void weights(T* tile, RowLse<T> row, RowLse<T> column) {
    T low = row.maximum[0] + row.log_total[0], high = low;
    range(row, &low, &high);
    range(column, &low, &high);
    if (high - low <= kSafeSpread / 2) {
        alignas(64) T falling[kTile], rising[kTile];
        const T shift = row.maximum[0], log_shift = row.log_total[0];
        for (int i = 0; i < kTile; i += kWidth<T>) {
            store<T>(falling + i, exp<T>((shift - load<T>(column.maximum + i)) + (log_shift - load<T>(column.log_total + i))));
            store<T>(rising + i, exp<T>((load<T>(row.maximum + i) - shift) + (load<T>(row.log_total + i) - log_shift)));
        }
        for (int i = 0; i < kTile; ++i)
            for (int j = 0; j < kTile; j += kWidth<T>) {
                T* p = tile + i * kTile + j;
                store<T>(p, exp<T>((load<T>(p) - row.maximum[i]) - row.log_total[i]) *
                                (rising[i] * load<T>(falling + j) + T(1)));
            }
    } else {
        for (int i = 0; i < kTile; ++i)
            for (int j = 0; j < kTile; j += kWidth<T>) {
                T* p = tile + i * kTile + j;
                store<T>(p, exp<T>((load<T>(p) - row.maximum[i]) - row.log_total[i]) +
                                exp<T>((load<T>(p) - load<T>(column.maximum + j)) - load<T>(column.log_total + j)));
            }
    }
}

// Replaces exponentials by G: both probabilities of a pair share its exponential.
template <class T>
void plain_weights(T* tile, const T* row_inverse, const T* column_inverse) {
    constexpr int vectors = kTile / kWidth<T>;
    Vec<T> columns[vectors];
    for (int v = 0; v < vectors; ++v) columns[v] = load<T>(column_inverse + v * kWidth<T>);
    for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 6
        for (int v = 0; v < vectors; ++v) {
            T* p = tile + i * kTile + v * kWidth<T>;
            store<T>(p, load<T>(p) * (columns[v] + row_inverse[i]));
        }
}

// Subtracts 2 at the positives: row i of the first view meets its other view in column i + n.
template <class T>
void subtract_positives(const Rows<T>& rows, std::int64_t first, std::int64_t second, T* tile) {
    const std::int64_t offset = first * kTile + rows.n - second * kTile;
    for (std::int64_t i = 0; i < kTile; ++i) {
        const std::int64_t j = i + offset;
        if (first * kTile + i < rows.n && j >= 0 && j < kTile) tile[i * kTile + j] -= T(2);
        const std::int64_t mirrored = i - offset;  // the same pair seen from the second view, in a diagonal tile
        if (first == second && first * kTile + mirrored < rows.n && mirrored >= 0 && mirrored < kTile &&
            i < rows.size(first))
            tile[i * kTile + mirrored] -= T(2);
    }
}

// `inverse` holds each row's exp(-lse) where the plain sums serve, else null.
template <class T>
void add_gradient(const Rows<T>& rows, std::int64_t first, std::int64_t second, T scale, RowLse<T> lse,
                  const T* inverse, T* grad) {
    alignas(64) T tile[kTile * kTile];
    if (inverse != nullptr) {
        exponentials(rows, first, second, scale, tile);
        plain_weights(tile, inverse + first * kTile, inverse + second * kTile);
    } else {
        similarities(rows, first, second, scale, tile);
        const auto rows_of = [&](std::int64_t block) {
            return RowLse<T>{lse.maximum + block * kTile, lse.log_total + block * kTile};
        };
        weights(tile, rows_of(first), rows_of(second));
    }
    subtract_positives(rows, first, second, tile);
    accumulate_product<T, false>(tile, rows.row_block(second), rows.columns, grad + first * kTile * rows.columns);
    if (first != second)
        accumulate_product<T, true>(tile, rows.row_block(first), rows.columns, grad + second * kTile * rows.columns);
}

template <class T>
void backward(const T* grad_loss, const void* z0, const void* z1, const T* lse, std::int64_t n, std::int64_t d,
              DType dtype, double temperature, void* grad0, void* grad1, int threads) {
    Rows<T> rows(n, d);
    pack_all(rows, z0, z1, dtype, threads);
    const std::int64_t padded = rows.blocks * kTile, elements = padded * rows.columns;
    Buffer<T> grad(elements), maximum(padded), log_total(padded), inverse(padded);
    // padding is masked in every tile; a real log-sum-exp there keeps its exponentials finite
    for (std::int64_t i = 0; i < padded; ++i) {
        const std::int64_t row = i < rows.count ? i : rows.count - 1;
        maximum.get()[i] = lse[row];
        log_total.get()[i] = lse[rows.count + row];
        inverse.get()[i] = static_cast<T>(::exp(-(static_cast<double>(lse[row]) + static_cast<double>(log_total.get()[i]))));
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < elements; ++i) grad.get()[i] = T(0);
    const T scale = static_cast<T>(1.0 / temperature);
    const RowLse<T> parts{maximum.get(), log_total.get()};
    const T* inverses = rows.plain(scale) ? inverse.get() : nullptr;
    for_each_tile(rows.order(), threads, [&](std::int64_t first, std::int64_t second) {
        add_gradient(rows, first, second, scale, parts, inverses, grad.get());
    });
    const T factor = *grad_loss * static_cast<T>(1.0 / (temperature * static_cast<double>(rows.count)));
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t row = 0; row < rows.count; ++row) {
            const T* in = grad.get() + row * rows.columns;
            S* out = row < n ? static_cast<S*>(grad0) + row * d : static_cast<S*>(grad1) + (row - n) * d;
            for (std::int64_t k = 0; k < d; ++k) narrow(in[k] * factor, out[k]);
        }
    });
}

}  // namespace

void nt_xent_forward(const void* z0, const void* z1, std::int64_t n, std::int64_t d, DType dtype, double temperature,
                     void* loss, void* lse, int threads) {
    if (dtype == DType::f64)
        forward<double>(z0, z1, n, d, dtype, temperature, static_cast<double*>(loss), static_cast<double*>(lse), threads);
    else
        forward<float>(z0, z1, n, d, dtype, temperature, static_cast<float*>(loss), static_cast<float*>(lse), threads);
}

void nt_xent_backward(const void* grad, const void* z0, const void* z1, const void* lse, std::int64_t n,
                      std::int64_t d, DType dtype, double temperature, void* grad0, void* grad1, int threads) {
    if (dtype == DType::f64)
        backward<double>(static_cast<const double*>(grad), z0, z1, static_cast<const double*>(lse), n, d, dtype,
                         temperature, grad0, grad1, threads);
    else
        backward<float>(static_cast<const float*>(grad), z0, z1, static_cast<const float*>(lse), n, d, dtype,
                        temperature, grad0, grad1, threads);
}

}  // namespace fastssl::FASTSSL_ISA
