// InfoNCE of queries against keys and further negatives, forward and backward (van den Oord et al. 2018,
// arXiv:1807.03748, eq. 4).
//
//   s_ij = <q_i, k_j> / t, the excluded column left out, then <q_i, negative_j> / t; P the softmax of each row
//   loss_i = lse_i - s_{i, target_i}, G_ij = (P_ij - [j = target_i]) dL/dloss_i
//   dL/dq_i = sum_j G_ij column_j / t        dL/dk_j = sum_i G_ij q_i / t
//
// The pass over the columns that gives the log-sum-exps gives dq too, up to the factor of its row: 4 n (m + k) d
// operations, 2 n (m + k) d without. The backward multiplies, and recomputes the similarities for dk alone: 4 n m d.
// Groups of rows (of queries, then of keys) times parts of the other side are the tasks; parts are combined in their
// order and depend on the sizes alone, so bits do not depend on the number of threads.
//
// bfloat16 rows are multiplied as they are where the processor can (operand.h), with the softmax rounded to bfloat16, and
// float rows in parts where it has a matrix unit (matrix_unit.h).
// Accumulated in float (double for f64). Extra memory: a copy of the lanes and their sums; nothing grows with n m.
// Reference and tests: fastssl/ops/info_nce.py, tests/ops/test_info_nce.py.
#include "info_nce.h"

#include "online_softmax.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// The columns that tell rows apart: its target, and the one left out.
struct Columns {
    const std::int64_t* targets;
    const std::int64_t* exclude;

    std::int64_t target(std::int64_t row) const { return targets != nullptr ? targets[row] : row; }
    std::int64_t excluded(std::int64_t row) const { return exclude != nullptr ? exclude[row] : -1; }
};

struct Problem {
    RowMatrix queries, keys, negatives;
    Columns columns;
    double temperature;
    int threads;
};

// Keeps the positives of a tile of keys, and takes them and the excluded columns out of it.
template <class O, class T = Sum<O>>
void take_out(const StreamedTile<O>& tile, const Columns& columns, T* positives) {
    for (int i = 0; i < tile.lane_count; ++i) {
        const std::int64_t row = tile.block * kTile + i, first = tile.index * kTile;
        const std::int64_t target = columns.target(row) - first, excluded = columns.excluded(row) - first;
        if (target >= 0 && target < tile.rows) {
            positives[row] = tile.values[target * kTile + i];
            tile.values[target * kTile + i] = -kInfinity<T>;
        }
        if (excluded >= 0 && excluded < tile.rows) tile.values[excluded * kTile + i] = -kInfinity<T>;
    }
}

template <class O, class T = Sum<O>>
void forward(const Problem& problem, double weight, T* loss, T* statistics, T* direction) {
    const std::int64_t n = problem.queries.rows;
    const int threads = problem.threads;
    const Lanes<O> lanes(problem.queries, threads);
    const InnerRows inner{problem.keys, problem.negatives};
    const LaneSplit split(problem.queries.blocks(), inner.tiles(), lanes.bytes_a_block());
    const RunningSums<T> running(split, direction != nullptr ? round_up(problem.keys.d, kPanel<T>) : 0, threads);
    Buffer<T> positives(n);
    const T scale = static_cast<T>(1.0 / problem.temperature);
    stream(lanes, inner, scale, split, threads, [&](const StreamedTile<O>& tile) {
        if (tile.index < problem.keys.blocks()) take_out(tile, problem.columns, positives.get());
        running.absorb(tile);
    });

    Buffer<double> losses(n);
    finish(running, n, Positives<T>{positives.get(), problem.keys, problem.columns.targets}, 1.0 / problem.temperature,
           direction, threads, [&](std::int64_t row, const ContrastTerms& terms) {
               losses.get()[row] = terms.loss;
               statistics[row] = static_cast<T>(terms.maximum);
               statistics[n + row] = static_cast<T>(terms.log_total);
               statistics[2 * n + row] = static_cast<T>(terms.share);
           });
    if (weight != 0)
        *loss = static_cast<T>(sum_in_order(losses.get(), n) * weight);
    else
        for (std::int64_t row = 0; row < n; ++row) loss[row] = static_cast<T>(losses.get()[row]);
}

// Replaces the similarities of keys (lanes) and queries (inner rows) by G.
template <class O, class T = Sum<O>>
void weigh(const StreamedTile<O>& tile, const Columns& columns, const T* grad, const T* statistics, std::int64_t n) {
    for (int j = 0; j < tile.rows; ++j) {
        const std::int64_t row = tile.index * kTile + j, first = tile.block * kTile;
        T* values = tile.values + j * kTile;
        const T maximum = statistics[row], log_total = statistics[n + row], factor = grad[row];
        for (int i = 0; i < tile.lane_count; i += kWidth<T>)
            store<T>(values + i, exp<T>((load<T>(values + i) - maximum) - log_total) * factor);
        const std::int64_t target = columns.target(row) - first, excluded = columns.excluded(row) - first;
        if (target >= 0 && target < tile.lane_count) values[target] = -factor * statistics[2 * n + row];
        if (excluded >= 0 && excluded < tile.lane_count) values[excluded] = T(0);
    }
}

template <class O, class S, class T = Sum<O>>
void backward_to_keys(const Problem& problem, const T* grad, const T* statistics, S* grad_keys) {
    const std::int64_t d = problem.keys.d, columns = round_up(d, kPanel<T>);
    const int threads = problem.threads;
    const Lanes<O> lanes(problem.keys, threads);
    const InnerRows inner{problem.queries, RowMatrix{nullptr, 0, d, problem.queries.dtype}};
    const LaneSplit split(problem.keys.blocks(), inner.tiles(), lanes.bytes_a_block());
    const LaneSums<T> sums(split, columns, threads);
    const T scale = static_cast<T>(1.0 / problem.temperature);
    stream(lanes, inner, scale, split, threads, [&](const StreamedTile<O>& tile) {
        weigh(tile, problem.columns, grad, statistics, problem.queries.rows);
        const Weights<O> weights(tile.values, tile.rows, tile.lane_count, {false, true});
        add_rows_to_lanes(weights, tile.inner, tile.rows, tile.lane_count, columns, sums.at(tile.block, tile.part));
    });
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t block = 0; block < split.blocks; ++block) {
        const T* all = sums.combine(block);
        for (int i = 0; i < problem.keys.size(block); ++i) {
            S* out = grad_keys + (block * kTile + i) * d;
            for_each_column(all, i, d, [&](std::int64_t k, T sum) { narrow(scale * sum, out[k]); });
        }
    }
}

template <class T, class S>
void backward_to_queries(const T* grad, const T* direction, const RowMatrix& queries, S* grad_queries, int threads) {
    const std::int64_t d = queries.d;
#pragma omp parallel for num_threads(for_elements(threads, queries.rows * d)) schedule(static)
    for (std::int64_t row = 0; row < queries.rows; ++row)
        for (std::int64_t k = row * d; k < (row + 1) * d; ++k) narrow(grad[row] * direction[k], grad_queries[k]);
}

template <class O, class T = Sum<O>>
void backward(const Problem& problem, const T* grad, const T* statistics, const T* direction, void* grad_queries,
              void* grad_keys) {
    with_type(grad_queries != nullptr ? problem.queries.dtype : DType::none, [&](auto type) {
        using S = decltype(type);
        backward_to_queries(grad, direction, problem.queries, static_cast<S*>(grad_queries), problem.threads);
    });
    with_type(grad_keys != nullptr ? problem.keys.dtype : DType::none, [&](auto type) {
        using S = decltype(type);
        backward_to_keys<O>(problem, grad, statistics, static_cast<S*>(grad_keys));
    });
}

}  // namespace

void info_nce_forward(const void* queries, const void* keys, const void* negatives, const std::int64_t* targets,
                      const std::int64_t* exclude, std::int64_t n, std::int64_t m, std::int64_t k, std::int64_t d,
                      DType queries_dtype, DType keys_dtype, DType negatives_dtype, double temperature, double weight,
                      void* loss, void* statistics, void* direction, int threads) {
    const Problem problem{{queries, n, d, queries_dtype}, {keys, m, d, keys_dtype}, {negatives, k, d, negatives_dtype},
                          {targets, exclude},             temperature,              at_most(threads, tiles(n, m + k))};
    const auto run = [&](auto operand) {
        using T = Sum<decltype(operand)>;
        forward<decltype(operand)>(problem, weight, static_cast<T*>(loss), static_cast<T*>(statistics),
                                   static_cast<T*>(direction));
    };
    with_operand(beside(queries_dtype, beside(keys_dtype, negatives_dtype)), problem.threads, run,
                 problem.queries.numbers(), problem.keys.numbers(), problem.negatives.numbers());
}

void info_nce_backward(const void* grad, const void* queries, const void* keys, const std::int64_t* targets,
                       const std::int64_t* exclude, const void* statistics, const void* direction, std::int64_t n,
                       std::int64_t m, std::int64_t d, DType queries_dtype, DType keys_dtype, double temperature,
                       void* grad_queries, void* grad_keys, int threads) {
    const Problem problem{{queries, n, d, queries_dtype}, {keys, m, d, keys_dtype}, {nullptr, 0, d, keys_dtype},
                          {targets, exclude},             temperature,              at_most(threads, tiles(n, m))};
    const auto run = [&](auto operand) {
        using T = Sum<decltype(operand)>;
        backward<decltype(operand)>(problem, static_cast<const T*>(grad), static_cast<const T*>(statistics),
                                    static_cast<const T*>(direction), grad_queries, grad_keys);
    };
    with_operand(beside(queries_dtype, keys_dtype), problem.threads, run, problem.queries.numbers(),
                 problem.keys.numbers());
}

}  // namespace fastssl::FASTSSL_ISA
