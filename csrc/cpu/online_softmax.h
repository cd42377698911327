// Each lane's softmax over inner rows that stream by, and the inner rows' sum weighted by it: one pass, nothing stored.
#pragma once

#include <math.h>

#include "similarity.h"

namespace fastssl::FASTSSL_ISA {

// For a block of lanes: the running maximum of their similarities, the sum of exp(s - maximum), and the sum of
// exp(s - maximum) inner_j, in panels.
template <class T>
struct Running {
    T* maximum;
    T* total;
    T* sums;
};

// The running values of every block of lanes and every part of a split; the weighted sums where `columns` is not 0.
template <class T>
class RunningSums {
public:
    RunningSums(const LaneSplit& split, std::int64_t columns, int threads)
        : parts_(split.parts), scalars_(split.blocks * split.parts * 2 * kTile), sums_(split, columns, threads) {
        for (std::int64_t index = 0; index < split.blocks * split.parts; ++index)
            for (int i = 0; i < kTile; ++i) {
                scalars_.get()[index * 2 * kTile + i] = kLowest<T>;
                scalars_.get()[index * 2 * kTile + kTile + i] = T(0);
            }
    }

    Running<T> at(std::int64_t block, std::int64_t part) const {
        T* scalars = scalars_.get() + (block * parts_ + part) * 2 * kTile;
        return {scalars, scalars + kTile, sums_.at(block, part)};
    }

    // Replaces exp(s - maximum) for the similarities of a tile and adds them; those of minus infinity count for
    // nothing.
    template <class O>
    void absorb(const StreamedTile<O>& tile) const {
        const Running<T> running = at(tile.block, tile.part);
        alignas(64) T factors[kTile];
        for (int i = 0; i < tile.lane_count; i += kWidth<T>) {
            const Vec<T> before = load<T>(running.maximum + i);
            Vec<T> maximum = before, total = {};
            for (int j = 0; j < tile.rows; ++j) maximum = vmax(maximum, load<T>(tile.values + j * kTile + i));
            for (int j = 0; j < tile.rows; ++j) {  // within the tile first: the error grows with kTile and the tiles
                const Vec<T> e = exp<T>(load<T>(tile.values + j * kTile + i) - maximum);
                total += e;
                store<T>(tile.values + j * kTile + i, e);
            }
            const Vec<T> factor = exp<T>(before - maximum);
            store<T>(factors + i, factor);
            store<T>(running.maximum + i, maximum);
            store<T>(running.total + i, load<T>(running.total + i) * factor + total);
        }
        if (sums_.columns == 0) return;
        rescale(factors, tile.lane_count, running.sums);
        const Weights<O> weights(tile.values, tile.rows, tile.lane_count, {false, true});
        add_rows_to_lanes(weights, tile.inner, tile.rows, tile.lane_count, sums_.columns, running.sums);
    }

    // Adds the other parts of a block to its first, in their order.
    Running<T> combine(std::int64_t block) const {
        const Running<T> all = at(block, 0);
        for (std::int64_t part = 1; part < parts_; ++part) {
            const Running<T> other = at(block, part);
            alignas(64) T kept[kTile], added[kTile];
            for (int i = 0; i < kTile; i += kWidth<T>) {
                const Vec<T> a = load<T>(all.maximum + i), b = load<T>(other.maximum + i), maximum = vmax(a, b);
                const Vec<T> keep = exp<T>(a - maximum), add = exp<T>(b - maximum);
                store<T>(all.maximum + i, maximum);
                store<T>(all.total + i, load<T>(all.total + i) * keep + load<T>(other.total + i) * add);
                store<T>(kept + i, keep);
                store<T>(added + i, add);
            }
            for (std::int64_t row = 0; row < kTile * sums_.columns / kPanel<T>; ++row)
                for (int k = 0; k < kPanel<T>; k += kWidth<T>) {
                    T* sums = all.sums + row * kPanel<T> + k;
                    const T* others = other.sums + row * kPanel<T> + k;
                    store<T>(sums, load<T>(sums) * kept[row % kTile] + load<T>(others) * added[row % kTile]);
                }
        }
        return all;
    }

private:
    // Multiplies each lane's sums by its factor, which is 1 unless the tile raised its maximum: seldom, after the
    // first.
    void rescale(const T* factors, int lane_count, T* sums) const {
        for (int i = 0; i < lane_count; ++i) {
            if (factors[i] == T(1)) continue;
            for (std::int64_t first = 0; first < sums_.columns; first += kPanel<T>)
                for (int k = 0; k < kPanel<T>; k += kWidth<T>) {
                    T* p = sums + first * kTile + i * kPanel<T> + k;
                    store<T>(p, load<T>(p) * factors[i]);
                }
        }
    }

    std::int64_t parts_;
    Buffer<T> scalars_;
    LaneSums<T> sums_;
};

// What a row's loss is made of, given its positive and the running values of all others. Nothing cancels: the positive
// is no term of the sums, so a loss or a gradient that is nearly 0 keeps its digits.
struct ContrastTerms {
    double loss;                // log-sum-exp minus the positive
    double maximum, log_total;  // the two parts of the log-sum-exp
    double share;               // of the others in the softmax: 1 - p(positive)
    double weight;              // of the others' sums in the mean under the softmax
};

template <class T>
ContrastTerms contrast(T positive, T maximum, T total) {
    const double shift = static_cast<double>(maximum > positive ? maximum : positive);
    const double kept = ::exp(static_cast<double>(maximum) - shift), others = static_cast<double>(total) * kept;
    const double sum = others + ::exp(static_cast<double>(positive) - shift);
    ContrastTerms terms;
    terms.maximum = shift;
    terms.log_total = maximum > positive ? ::log(sum) : ::log1p(others);
    // an infinite positive has no loss: its difference with itself is NaN
    terms.loss = (shift - static_cast<double>(positive)) + terms.log_total + static_cast<double>(positive - positive);
    terms.share = others / sum;
    terms.weight = kept / sum;
    return terms;
}

// The positives of a pass: row i's similarity, and the row of `keys` that it is with.
template <class T>
struct Positives {
    const T* similarities;
    RowMatrix keys;
    const std::int64_t* rows;  // or null: row i

    std::int64_t row(std::int64_t i) const { return rows != nullptr ? rows[i] : i; }
};

// Calls keep(row, terms) for each of n rows, and writes factor * (sum_j P_j inner_j - key of the positive) as its
// direction, where P is the softmax over all, unless direction is null.
template <class T, class Keep>
void finish(const RunningSums<T>& running, std::int64_t n, const Positives<T>& positives, double factor, T* direction,
            int threads, Keep keep) {
    const std::int64_t d = positives.keys.d, blocks = (n + kTile - 1) / kTile;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t block = 0; block < blocks; ++block) {
        const Running<T> all = running.combine(block);
        for (std::int64_t row = block * kTile; row < smaller((block + 1) * kTile, n); ++row) {
            const int i = static_cast<int>(row - block * kTile);
            const ContrastTerms terms = contrast(positives.similarities[row], all.maximum[i], all.total[i]);
            keep(row, terms);
            if (direction == nullptr) continue;
            const T weight = static_cast<T>(terms.weight * factor), own = static_cast<T>(terms.share * factor);
            with_type(positives.keys.dtype, [&](auto type) {
                using S = decltype(type);
                const S* key = static_cast<const S*>(positives.keys.data) + positives.row(row) * d;
                for_each_column(all.sums, i, d, [&](std::int64_t k, T sum) {
                    direction[row * d + k] = weight * sum - own * static_cast<T>(widen(key[k]));
                });
            });
        }
    }
}

// The sum of n numbers in their order.
inline double sum_in_order(const double* values, std::int64_t n) {
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += values[i];
    return sum;
}

}  // namespace fastssl::FASTSSL_ISA
