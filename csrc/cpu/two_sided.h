// The softmaxes of a matrix of similarities along its rows and along its columns, a tile at a time: one exponential
// serves both wherever the tile's values lie close enough together. tile[j][i]: row j, lane i.
#pragma once

#include "buffer.h"
#include "tile.h"

namespace fastssl::FASTSSL_ISA {

// exp(-kSafeSpread) is a normal number in float with room to spare, so one shift serves a whole tile within it.
constexpr int kSafeSpread = 60;

// Shifts and the sums of exp(s - shift), for the lanes and the rows of a tile.
template <class T>
struct TileSums {
    alignas(64) T lane_shifts[kTile], lane_sums[kTile], row_shifts[kTile], row_sums[kTile];
};

// Each row's running maximum, which begins at `lowest`, and its sum of exp(s - maximum).
template <class T>
struct RunningLse {
    explicit RunningLse(std::int64_t blocks, T lowest = kLowest<T>) : maximum(blocks * kTile), total(blocks * kTile) {
        for (std::int64_t i = 0; i < blocks * kTile; ++i) maximum.get()[i] = lowest, total.get()[i] = T(0);
    }
    // Adds, for each of a block's kTile rows, sums[i] * exp(shifts[i]).
    void add(std::int64_t block, const T* shifts, const T* sums) const {
        for (int i = 0; i < kTile; i += kWidth<T>) {
            T* const maxima = maximum.get() + block * kTile + i;
            T* const totals = total.get() + block * kTile + i;
            const Vec<T> before = load<T>(maxima), shift = load<T>(shifts + i), after = vmax(before, shift);
            store<T>(totals, load<T>(totals) * exp<T>(before - after) + load<T>(sums + i) * exp<T>(shift - after));
            store<T>(maxima, after);
        }
    }

    Buffer<T> maximum, total;
};

// The lowest and the highest value of the first `rows` rows, all lanes.
template <class T>
void extremes(const T* tile, int rows, T* low, T* high) {
    Vec<T> minimum = load<T>(tile), maximum = minimum;
    for (int i = 0; i < rows * kTile; i += kWidth<T>) {
        minimum = vmin(minimum, load<T>(tile + i));
        maximum = vmax(maximum, load<T>(tile + i));
    }
    *low = -largest<T>(-minimum);
    *high = largest<T>(maximum);
}

// A shift for each lane and each row, for tiles whose values lie too far apart for one.
template <class T>
void own_shifts(const T* tile, int rows, TileSums<T>& sums) {
    for (int j = 0; j < rows; ++j) {
        Vec<T> row = broadcast<T>(kLowest<T>);
        for (int i = 0; i < kTile; i += kWidth<T>) {
            const Vec<T> x = load<T>(tile + j * kTile + i);
            row = vmax(row, x);
            store<T>(sums.lane_shifts + i, vmax(load<T>(sums.lane_shifts + i), x));
        }
        sums.row_shifts[j] = largest<T>(row);
    }
}

// The sums of a tile in both directions; values of minus infinity count for nothing.
template <class T>
void sum_tile(const T* tile, int rows, TileSums<T>& sums) {
    for (int i = 0; i < kTile; ++i) {
        sums.lane_shifts[i] = sums.row_shifts[i] = kLowest<T>;
        sums.lane_sums[i] = sums.row_sums[i] = T(0);
    }
    T low, high;
    extremes(tile, rows, &low, &high);
    const bool one_shift = high - low <= kSafeSpread;
    if (one_shift)
        for (int i = 0; i < kTile; ++i) sums.lane_shifts[i] = sums.row_shifts[i] = high;
    else
        own_shifts(tile, rows, sums);
    for (int j = 0; j < rows; ++j) {
        Vec<T> row = {};
        for (int i = 0; i < kTile; i += kWidth<T>) {
            const Vec<T> x = load<T>(tile + j * kTile + i);
            const Vec<T> e = exp<T>(x - load<T>(sums.lane_shifts + i));
            store<T>(sums.lane_sums + i, load<T>(sums.lane_sums + i) + e);
            row += one_shift ? e : exp<T>(x - sums.row_shifts[j]);
        }
        sums.row_sums[j] = sum<T>(row);
    }
}

// The log-sum-exps of a block of n rows, in two parts (nt_xent.h); after the last row, those of the last.
template <class T>
struct BlockLse {
    alignas(64) T maximum[kTile], log_total[kTile];
    T low, high;

    BlockLse(const T* maxima, const T* log_totals, std::int64_t n, std::int64_t block) : low(kInfinity<T>), high(-low) {
        for (int i = 0; i < kTile; ++i) {
            const std::int64_t row = block * kTile + i < n ? block * kTile + i : n - 1;
            maximum[i] = maxima[row], log_total[i] = log_totals[row];
            const T lse = maximum[i] + log_total[i];
            if (lse < low) low = lse;
            if (lse > high) high = lse;
        }
    }
};

// Replaces similarities by P + Q, P_ji = exp(s_ji - lse of row j) and Q_ji = exp(s_ji - lse of lane i). Q_ji is P_ji
// exp(lse of row j - lse of lane i): one exponential serves both, unless the log-sum-exps lie too far apart for the
// product to be exact. Maxima are subtracted first, where the difference is exact.
template <class T>
void weigh(T* tile, int rows, const BlockLse<T>& of_rows, const BlockLse<T>& of_lanes) {
    const T low = of_rows.low < of_lanes.low ? of_rows.low : of_lanes.low;
    const T high = of_rows.high > of_lanes.high ? of_rows.high : of_lanes.high;
    const bool one = high - low <= kSafeSpread / 2;
    alignas(64) T falling[kTile], rising[kTile];
    const T shift = of_lanes.maximum[0], log_shift = of_lanes.log_total[0];
    for (int i = 0; one && i < kTile; i += kWidth<T>) {
        const Vec<T> below = log_shift - load<T>(of_lanes.log_total + i);
        const Vec<T> above = load<T>(of_rows.log_total + i) - log_shift;
        store<T>(falling + i, exp<T>((shift - load<T>(of_lanes.maximum + i)) + below));
        store<T>(rising + i, exp<T>((load<T>(of_rows.maximum + i) - shift) + above));
    }
    for (int j = 0; j < rows; ++j)
        for (int i = 0; i < kTile; i += kWidth<T>) {
            T* p = tile + j * kTile + i;
            const Vec<T> s = load<T>(p), of_row = exp<T>((s - of_rows.maximum[j]) - of_rows.log_total[j]);
            store<T>(p, one ? of_row * (rising[j] * load<T>(falling + i) + T(1))
                            : of_row + exp<T>((s - load<T>(of_lanes.maximum + i)) - load<T>(of_lanes.log_total + i)));
        }
}

}  // namespace fastssl::FASTSSL_ISA
