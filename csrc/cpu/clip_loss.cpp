// CLIP's symmetric cross-entropy, forward and backward (Radford et al. 2021, arXiv:2103.00020, figure 3).
//
//   s_ij = scale <a_i, b_j>, P the softmax of its rows, Q that of its columns
//   loss = sum_i (-log P_ii - log Q_ii) / 2n        G = (P + Q - 2 I) / 2n
//   dloss/da_i = scale sum_j G_ij b_j               dloss/db_j = scale sum_i G_ij a_i
//
// One tile of s serves both directions: 2 n^2 d floating-point operations forward, 6 n^2 d backward (4 for one side),
// and an exponential for each pair and pass where the tile's values lie close enough together. Rounds: pairs.h.
//
// bfloat16 rows are multiplied as they are where the processor can (operand.h), with G rounded to bfloat16, and float
// rows in parts where it has a matrix unit (matrix_unit.h).
// Accumulated in float (double for f64). Extra memory: 5 n d elements, 9.5 in parts
// (operand.h); nothing grows with n^2.
// Reference and tests: fastssl/ops/clip_loss.py, tests/ops/test_clip_loss.py.
#include "clip_loss.h"

#include "online_softmax.h"
#include "pairs.h"
#include "two_sided.h"

namespace fastssl::FASTSSL_ISA {
namespace {

struct Problem {
    RowMatrix a, b;
    double scale;
    int threads;

    std::int64_t n() const { return a.rows; }
};

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

template <class O, class T = Sum<O>>
void forward(const Problem& problem, T* loss, T* statistics) {
    const std::int64_t n = problem.n(), blocks = problem.a.blocks();
    const T scale = static_cast<T>(problem.scale);
    const Lanes<O> lanes(problem.a, problem.threads);
    const PackedRows<O> inner(problem.b, problem.threads);
    const RunningLse<T> of_a(blocks), of_b(blocks);
    Buffer<T> positives(n);
    for_each_pair<T>(blocks, problem.threads, [&](std::int64_t first, std::int64_t second, T* tile) {
        const int lane_count = problem.a.size(first), rows = problem.b.size(second);
        similarities<O>(inner.block(second), rows, lanes.block(first), lane_count, problem.a.d, scale, tile);
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

template <class O, class T = Sum<O>>
void backward(const Problem& problem, T grad, const T* statistics, void* grad_a, void* grad_b) {
    const std::int64_t n = problem.n(), d = problem.a.d;
    const T scale = static_cast<T>(problem.scale);
    const int threads = problem.threads;
    const Lanes<O> lanes(problem.a, threads);
    const PackedRows<O> inner(problem.b, threads), a_as_inner(problem.a, threads);
    const RowSums<T> sums_a(problem.a, grad_a != nullptr, threads), sums_b(problem.b, grad_b != nullptr, threads);
    for_each_pair<T>(problem.a.blocks(), threads, [&](std::int64_t first, std::int64_t second, T* tile) {
        const int lane_count = problem.a.size(first), rows = problem.b.size(second);
        similarities<O>(inner.block(second), rows, lanes.block(first), lane_count, d, scale, tile);
        const BlockLse<T> of_a(statistics, statistics + n, n, first);
        const BlockLse<T> of_b(statistics + 3 * n, statistics + 4 * n, n, second);
        weigh(tile, rows, of_b, of_a);
        const T *shares_a = statistics + 2 * n + first * kTile, *shares_b = statistics + 5 * n + second * kTile;
        for (int i = 0; first == second && i < rows; ++i) tile[i * kTile + i] = -(shares_a[i] + shares_b[i]);
        const Weights<O> weights(tile, rows, lane_count, {grad_b != nullptr, grad_a != nullptr});
        if (grad_a != nullptr)
            add_rows_to_lanes(weights, inner.block(second), rows, lane_count, d, sums_a.block(first));
        if (grad_b != nullptr)
            add_lanes_to_rows(weights, a_as_inner.block(first), rows, lane_count, d, sums_b.block(second));
    });
    const T factor = grad * scale * static_cast<T>(1.0 / static_cast<double>(2 * n));
    with_type(grad_a != nullptr ? problem.a.dtype : DType::none, [&](auto type) {
        sums_a.write(factor, static_cast<decltype(type)*>(grad_a), threads);
    });
    with_type(grad_b != nullptr ? problem.b.dtype : DType::none, [&](auto type) {
        sums_b.write(factor, static_cast<decltype(type)*>(grad_b), threads);
    });
}

}  // namespace

void clip_loss_forward(const void* a, const void* b, std::int64_t n, std::int64_t d, DType a_dtype, DType b_dtype,
                       double scale, void* loss, void* statistics, int threads) {
    const Problem problem{{a, n, d, a_dtype}, {b, n, d, b_dtype}, scale, at_most(threads, tiles(n, n))};
    const auto run = [&](auto operand) {
        using T = Sum<decltype(operand)>;
        forward<decltype(operand)>(problem, static_cast<T*>(loss), static_cast<T*>(statistics));
    };
    with_operand(beside(a_dtype, b_dtype), problem.threads, run, problem.a.numbers(), problem.b.numbers());
}

void clip_loss_backward(const void* grad, const void* a, const void* b, const void* statistics, std::int64_t n,
                        std::int64_t d, DType a_dtype, DType b_dtype, double scale, void* grad_a, void* grad_b,
                        int threads) {
    const Problem problem{{a, n, d, a_dtype}, {b, n, d, b_dtype}, scale, at_most(threads, tiles(n, n))};
    const auto run = [&](auto operand) {
        using T = Sum<decltype(operand)>;
        backward<decltype(operand)>(problem, *static_cast<const T*>(grad), static_cast<const T*>(statistics), grad_a,
                                    grad_b);
    };
    with_operand(beside(a_dtype, b_dtype), problem.threads, run, problem.a.numbers(), problem.b.numbers());
}

}  // namespace fastssl::FASTSSL_ISA
