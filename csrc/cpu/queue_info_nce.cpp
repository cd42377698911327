// InfoNCE against a queue, forward and backward (MoCo, He et al. 2020, arXiv:1911.05722, eq. 1).
//
//   s_i0 = <q_i, key_i> / t, s_ij = <q_i, queue_j> / t, P the softmax of each row      loss = mean_i -log P_i0
//   dloss/dq_i = (sum_j P_ij queue_j - (1 - P_i0) key_i) / (t n)       dloss/dkey_i = -(1 - P_i0) q_i / (t n)
//
// The queue has no gradient, so one pass over it gives the log-sum-exps and the query's gradient up to a factor:
// 4 n k d floating-point operations and n k exponentials for forward and backward. Groups of queries times parts of
// the queue are the tasks; parts are combined in their order, and depend on the sizes alone.
//
// A bfloat16 queue and queries are multiplied as they are where the processor can (operand.h), with the softmax rounded
// to bfloat16, and floats in parts where it has a matrix unit (matrix_unit.h).
// Accumulated in float (double for f64). Extra memory: a copy of the queries, and their sums for each part of the
// queue, of which there are fewer the more queries there are (LaneSplit). Bytes read: the queue, once for a group of
// queries.
// Reference and tests: fastssl/ops/queue_info_nce.py, tests/ops/test_queue_info_nce.py.
#include "queue_info_nce.h"

#include "online_softmax.h"

namespace fastssl::FASTSSL_ISA {
namespace {

template <class T>
void dot_rows(const RowMatrix& a, const RowMatrix& b, T scale, T* out, int threads) {
    with_type(a.dtype, [&](auto type) {
        using S = decltype(type);
        const S* x = static_cast<const S*>(a.data);
        const S* y = static_cast<const S*>(b.data);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t row = 0; row < a.rows; ++row) {
            double sum = 0;
            for (std::int64_t k = row * a.d; k < (row + 1) * a.d; ++k)
                sum += static_cast<double>(widen(x[k])) * static_cast<double>(widen(y[k]));
            out[row] = static_cast<T>(sum * static_cast<double>(scale));
        }
    });
}

template <class O, class T = Sum<O>>
void forward(const RowMatrix& query, const RowMatrix& key, const RowMatrix& queue, double temperature, T* loss,
             T* share, T* direction, int most_threads) {
    const std::int64_t n = query.rows;
    const int threads = at_most(most_threads, tiles(n, queue.rows));
    const T scale = static_cast<T>(1.0 / temperature);
    const Lanes<O> lanes(query, threads);
    const InnerRows inner{queue, RowMatrix{nullptr, 0, query.d, queue.dtype}};
    const LaneSplit split(query.blocks(), inner.tiles(), lanes.bytes_a_block());
    const RunningSums<T> running(split, direction != nullptr ? round_up(query.d, kPanel<T>) : 0, threads);
    stream(lanes, inner, scale, split, threads, [&](const StreamedTile<O>& tile) { running.absorb(tile); });

    Buffer<T> positive(n);
    dot_rows(query, key, scale, positive.get(), threads);
    Buffer<double> losses(n);
    finish(running, n, Positives<T>{positive.get(), key, nullptr}, 1.0 / (temperature * static_cast<double>(n)),
           direction, threads, [&](std::int64_t row, const ContrastTerms& terms) {
               losses.get()[row] = terms.loss;
               share[row] = static_cast<T>(terms.share);
           });
    *loss = static_cast<T>(sum_in_order(losses.get(), n) / static_cast<double>(n));
}

template <class T, class S>
void backward(T grad, const S* query, const T* share, const T* direction, std::int64_t n, std::int64_t d,
              double temperature, S* grad_query, S* grad_key, int threads) {
    const T factor = grad * static_cast<T>(-1.0 / (temperature * static_cast<double>(n)));
#pragma omp parallel for num_threads(for_elements(threads, n * d)) schedule(static)
    for (std::int64_t row = 0; row < n; ++row)
        for (std::int64_t k = row * d; k < (row + 1) * d; ++k) {
            if (grad_query != nullptr) narrow(grad * direction[k], grad_query[k]);
            if (grad_key != nullptr) narrow(factor * share[row] * static_cast<T>(widen(query[k])), grad_key[k]);
        }
}

}  // namespace

void queue_info_nce_forward(const void* query, const void* key, const void* queue, std::int64_t n, std::int64_t k,
                            std::int64_t d, DType dtype, DType queue_dtype, double temperature, void* loss, void* share,
                            void* direction, int threads) {
    const RowMatrix queries{query, n, d, dtype}, keys{key, n, d, dtype}, negatives{queue, k, d, queue_dtype};
    const auto run = [&](auto operand) {
        using T = Sum<decltype(operand)>;
        forward<decltype(operand)>(queries, keys, negatives, temperature, static_cast<T*>(loss), static_cast<T*>(share),
                                   static_cast<T*>(direction), threads);
    };
    // To look through the queue beforehand would read it from memory a second time: the loss tells what has no parts.
    const auto run_and_look = [&](auto operand) {
        run(operand);
        if constexpr (kInParts<decltype(operand)>)
            if (!is_finite(*static_cast<const float*>(loss))) run(float{});
    };
    with_operand(beside(dtype, queue_dtype), threads, run_and_look, queries.numbers());
}

void queue_info_nce_backward(const void* grad, const void* query, const void* share, const void* direction,
                             std::int64_t n, std::int64_t d, DType dtype, double temperature, void* grad_query,
                             void* grad_key, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(S{}));
        backward(*static_cast<const T*>(grad), static_cast<const S*>(query), static_cast<const T*>(share),
                 static_cast<const T*>(direction), n, d, temperature, static_cast<S*>(grad_query),
                 static_cast<S*>(grad_key), threads);
    });
}

}  // namespace fastssl::FASTSSL_ISA
