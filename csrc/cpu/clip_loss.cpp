// CLIP's symmetric cross-entropy, forward and backward (Radford et al. 2021, arXiv:2103.00020, figure 3).
//
//   s_ij = scale <a_i, b_j>, P the softmax of its rows, Q that of its columns
//   loss = sum_i (-log P_ii - log Q_ii) / 2n        G = (P + Q - 2 I) / 2n
//   dloss/da_i = scale sum_j G_ij b_j               dloss/db_j = scale sum_i G_ij a_i
//
// One tile of s serves both directions: 2 n^2 d floating-point operations forward, 6 n^2 d backward (4 for one side),
// and an exponential for each pair and pass where the tile's values lie close enough together. Rounds: pairs.h.
//
// Accumulated in float (double for f64). Extra memory: 5 n d elements; nothing grows with n^2.
// Reference and tests: fastssl/ops/clip_loss.py, tests/ops/test_clip_loss.py.
#include "clip_loss.h"

#include "online_softmax.h"
#include "pairs.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// exp(-kSafeSpread) is a normal number in float with room to spare, so one shift serves a whole tile within it.
constexpr int kSafeSpread = 60;

struct Problem {
    RowMatrix a, b;
    double scale;
    int threads;

    std::int64_t n() const { return a.rows; }
};

// Shifts and the sums of exp(s - shift), for the lanes and the rows of a tile.
template <class T>
struct TileSums {
    alignas(64) T lane_shifts[kTile], lane_sums[kTile], row_shifts[kTile], row_sums[kTile];
};

// Each row's running maximum and its sum of exp(s - maximum).
template <class T>
struct RunningLse {
    explicit RunningLse(std::int64_t blocks) : maximum(blocks * kTile), total(blocks * kTile) {
        for (std::int64_t i = 0; i < blocks * kTile; ++i) maximum.get()[i] = kLowest<T>, total.get()[i] = T(0);
    }
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

// The sums of a tile in both directions; values of minus infinity count for nothing. With one shift for the whole tile
// one exponential serves both.
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

// The sum of one side's losses, in the order of its rows, and its statistics.
template <class T>
double finish(const T* positives, const RunningLse<T>& lse, std::int64_t n, T* statistics) {
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        const ContrastTerms terms = contrast(positives[i], lse.maximum.get()[i], lse.total.get()[i]);
        sum += terms.loss;
        statistics[i] = static_cast<T>(terms.maximum);
        statistics[n + i] = static_cast<T>(terms.log_total);
        statistics[2 * n + i] = static_cast<T>(terms.share);
    }
    return sum;
}

template <class T>
void forward(const Problem& problem, T* loss, T* statistics) {
    const std::int64_t n = problem.n(), blocks = problem.a.blocks();
    const Lanes<T> lanes(problem.a, static_cast<T>(problem.scale), problem.threads);
    const PackedRows<T> inner(problem.b, T(1), problem.threads);
    const RunningLse<T> of_a(blocks), of_b(blocks);
    Buffer<T> positives(n);
    for_each_pair<T>(blocks, problem.threads, [&](std::int64_t first, std::int64_t second, T* tile) {
        const int lane_count = problem.a.size(first), rows = problem.b.size(second);
        similarities<T>(inner.block(second), rows, lanes.block(first), lane_count, problem.a.d, tile);
        for (int j = 0; j < rows; ++j)
            for (int i = lane_count; i < kTile; ++i) tile[j * kTile + i] = -kInfinity<T>;
        for (int i = 0; first == second && i < rows; ++i) {
            positives.get()[first * kTile + i] = tile[i * kTile + i];
            tile[i * kTile + i] = -kInfinity<T>;
        }
        TileSums<T> sums;
        sum_tile(tile, rows, sums);
        of_a.add(first, sums.lane_shifts, sums.lane_sums);
        of_b.add(second, sums.row_shifts, sums.row_sums);
    });
    const double losses_a = finish(positives.get(), of_a, n, statistics);
    const double losses_b = finish(positives.get(), of_b, n, statistics + 3 * n);
    *loss = static_cast<T>((losses_a + losses_b) / static_cast<double>(2 * n));
}

// The statistics of a block of rows, as the forward returns them; in the lanes after the last row, those of the last.
template <class T>
struct BlockStatistics {
    alignas(64) T maximum[kTile], log_total[kTile], share[kTile];
    T low, high;  // of the log-sum-exps

    BlockStatistics(const T* statistics, std::int64_t n, std::int64_t block) : low(kInfinity<T>), high(-kInfinity<T>) {
        for (int i = 0; i < kTile; ++i) {
            const std::int64_t row = smaller(block * kTile + i, n - 1);
            maximum[i] = statistics[row], log_total[i] = statistics[n + row], share[i] = statistics[2 * n + row];
            const T lse = maximum[i] + log_total[i];
            if (lse < low) low = lse;
            if (lse > high) high = lse;
        }
    }
};

// Replaces similarities by P + Q. P_ij = Q_ij exp(lse of b_j - lse of a_i): one exponential serves both, unless the
// log-sum-exps of the tile lie too far apart for the product to be exact. Maxima are subtracted first, where the
// difference is exact.
template <class T>
void weigh(T* tile, int rows, const BlockStatistics<T>& of_a, const BlockStatistics<T>& of_b) {
    const T low = of_a.low < of_b.low ? of_a.low : of_b.low, high = of_a.high > of_b.high ? of_a.high : of_b.high;
    const bool one = high - low <= kSafeSpread / 2;
    alignas(64) T falling[kTile], rising[kTile];
    const T shift = of_a.maximum[0], log_shift = of_a.log_total[0];
    for (int i = 0; one && i < kTile; i += kWidth<T>) {
        store<T>(falling + i,
                 exp<T>((shift - load<T>(of_a.maximum + i)) + (log_shift - load<T>(of_a.log_total + i))));
        store<T>(rising + i, exp<T>((load<T>(of_b.maximum + i) - shift) + (load<T>(of_b.log_total + i) - log_shift)));
    }
    for (int j = 0; j < rows; ++j)
        for (int i = 0; i < kTile; i += kWidth<T>) {
            T* p = tile + j * kTile + i;
            const Vec<T> s = load<T>(p), q = exp<T>((s - of_b.maximum[j]) - of_b.log_total[j]);
            store<T>(p, one ? q * (rising[j] * load<T>(falling + i) + T(1))
                            : q + exp<T>((s - load<T>(of_a.maximum + i)) - load<T>(of_a.log_total + i)));
        }
}

template <class T>
void backward(const Problem& problem, T grad, const T* statistics, void* grad_a, void* grad_b) {
    const std::int64_t n = problem.n(), d = problem.a.d;
    const T scale = static_cast<T>(problem.scale);
    const int threads = problem.threads;
    const Lanes<T> lanes(problem.a, scale, threads);
    const PackedRows<T> inner(problem.b, T(1), threads), scaled_a(problem.a, scale, threads);
    const RowSums<T> sums_a(problem.a, grad_a != nullptr, threads), sums_b(problem.b, grad_b != nullptr, threads);
    for_each_pair<T>(problem.a.blocks(), threads, [&](std::int64_t first, std::int64_t second, T* tile) {
        const int lane_count = problem.a.size(first), rows = problem.b.size(second);
        similarities<T>(inner.block(second), rows, lanes.block(first), lane_count, d, tile);
        const BlockStatistics<T> of_a(statistics, n, first), of_b(statistics + 3 * n, n, second);
        weigh(tile, rows, of_a, of_b);
        for (int i = 0; first == second && i < rows; ++i) tile[i * kTile + i] = -(of_a.share[i] + of_b.share[i]);
        if (grad_a != nullptr) add_rows_to_lanes(tile, inner.block(second), rows, lane_count, d, sums_a.block(first));
        if (grad_b != nullptr)
            add_lanes_to_rows(tile, scaled_a.block(first), rows, lane_count, d, sums_b.block(second));
    });
    const T factor = grad * static_cast<T>(1.0 / static_cast<double>(2 * n));
    with_type(grad_a != nullptr ? problem.a.dtype : DType::none, [&](auto type) {
        sums_a.write(factor * scale, static_cast<decltype(type)*>(grad_a), threads);
    });
    with_type(grad_b != nullptr ? problem.b.dtype : DType::none, [&](auto type) {
        sums_b.write(factor, static_cast<decltype(type)*>(grad_b), threads);
    });
}

}  // namespace

void clip_loss_forward(const void* a, const void* b, std::int64_t n, std::int64_t d, DType a_dtype, DType b_dtype,
                       double scale, void* loss, void* statistics, int threads) {
    const Problem problem{{a, n, d, a_dtype}, {b, n, d, b_dtype}, scale, threads};
    if (a_dtype == DType::f64)
        forward(problem, static_cast<double*>(loss), static_cast<double*>(statistics));
    else
        forward(problem, static_cast<float*>(loss), static_cast<float*>(statistics));
}

void clip_loss_backward(const void* grad, const void* a, const void* b, const void* statistics, std::int64_t n,
                        std::int64_t d, DType a_dtype, DType b_dtype, double scale, void* grad_a, void* grad_b,
                        int threads) {
    const Problem problem{{a, n, d, a_dtype}, {b, n, d, b_dtype}, scale, threads};
    if (a_dtype == DType::f64)
        backward(problem, *static_cast<const double*>(grad), static_cast<const double*>(statistics), grad_a, grad_b);
    else
        backward(problem, *static_cast<const float*>(grad), static_cast<const float*>(statistics), grad_a, grad_b);
}

}  // namespace fastssl::FASTSSL_ISA
