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
// bfloat16 rows are multiplied as they are where the processor can (operand.h): s is then as exact as in float, and G,
// its positives subtracted, is rounded to bfloat16 before its product. Float rows are multiplied in parts where it has a
// matrix unit (matrix_unit.h).
//
// Accumulated in float (double for f64). Extra memory: 3 R d elements, 5.5 in parts; nothing grows with R^2.
// Reference and tests: fastssl/ops/nt_xent.py, tests/ops/test_nt_xent.py.
#include "nt_xent.h"

#include <math.h>

#include "two_sided.h"
#include "view_rows.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// Sets to `outside` what is no pair: padding, and a row with itself.
template <class T>
void mask(T* tile, T outside, int rows, int columns, bool diagonal) {
    for (int i = 0; i < kTile; ++i) {
        for (int j = i < rows ? columns : 0; j < kTile; ++j) tile[i * kTile + j] = outside;
        if (diagonal) tile[i * kTile + i] = outside;
    }
}

// The similarities of two blocks, with minus infinity for what is no pair.
template <class O, class T = Sum<O>>
void similarities(const Rows<O>& rows, std::int64_t first, std::int64_t second, Sum<O> scale, T* tile) {
    inner_products<O>(rows.left_block(first), rows.depth_block(second), rows.depth, tile);
    for (int i = 0; i < kTile * kTile; i += kWidth<T>) store<T>(tile + i, load<T>(tile + i) * scale);
    mask<T>(tile, -kInfinity<T>, rows.size(first), rows.size(second), first == second);
}

// Replaces inner products by their exponentials, and by 0 where there is no pair.
template <class O, class T = Sum<O>>
void exponentials(const Rows<O>& rows, std::int64_t first, std::int64_t second, Sum<O> scale, T* tile) {
    inner_products<O>(rows.left_block(first), rows.depth_block(second), rows.depth, tile);
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

template <class O, class T = Sum<O>>
void add_shifted_tile(const Rows<O>& rows, std::int64_t first, std::int64_t second, Sum<O> scale,
                      const RunningLse<T>& lse) {
    alignas(64) T tile[kTile * kTile];
    TileSums<T> sums;
    similarities(rows, first, second, scale, tile);
    sum_tile(tile, kTile, sums);
    lse.add(first, sums.row_shifts, sums.row_sums);
    if (first != second) lse.add(second, sums.lane_shifts, sums.lane_sums);
}

template <class O, class T = Sum<O>>
void add_plain_tile(const Rows<O>& rows, std::int64_t first, std::int64_t second, Sum<O> scale, T* total) {
    alignas(64) T tile[kTile * kTile];
    exponentials(rows, first, second, scale, tile);
    add_row_sums(tile, total + first * kTile);
    if (first != second) add_column_sums(tile, total + second * kTile);
}

// The similarity of each pair of views, n of them.
template <class T>
void similarities_of_pairs(const void* z0, const void* z1, std::int64_t n, std::int64_t d, DType dtype, T scale,
                           T* positives, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
#pragma omp parallel for num_threads(for_elements(threads, n * d)) schedule(static)
        for (std::int64_t i = 0; i < n; ++i)
            positives[i] = dot<T>(static_cast<const S*>(z0) + i * d, static_cast<const S*>(z1) + i * d, d) * scale;
    });
}

template <class O, class T = Sum<O>>
void forward(const void* z0, const void* z1, std::int64_t n, std::int64_t d, DType dtype, double temperature, void* loss,
             T* lse, int threads) {
    Rows<O> rows(n, d, false);
    pack_all(rows, z0, z1, dtype, threads);
    const T scale = static_cast<T>(1.0 / temperature);
    const bool plain = rows.plain(scale);
    const RunningLse<T> sums(rows.blocks, plain ? T(0) : kLowest<T>);
    for_each_tile(rows.order(), threads, [&](std::int64_t first, std::int64_t second) {
        if (plain)
            add_plain_tile(rows, first, second, scale, sums.total.get());
        else
            add_shifted_tile(rows, first, second, scale, sums);
    });
    const Buffer<T> positives(n);
    similarities_of_pairs(z0, z1, n, d, dtype, scale, positives.get(), threads);
    double sum_of_losses = 0;
    for (std::int64_t i = 0; i < rows.count; ++i) {
        const T maximum = sums.maximum.get()[i];
        const double log_total = ::log(static_cast<double>(sums.total.get()[i]));
        const double whole = static_cast<double>(maximum) + log_total;
        // two parts that together hold what one would round: the backward subtracts one after the other
        lse[i] = plain ? static_cast<T>(whole) : maximum;
        lse[rows.count + i] = static_cast<T>(plain ? whole - static_cast<double>(lse[i]) : log_total);
        const T positive = positives.get()[i < n ? i : i - n];
        // both nearly cancel where the loss is small: subtract the positive from the maximum first
        sum_of_losses += static_cast<double>(maximum - positive) + log_total;
    }
    *static_cast<T*>(loss) = static_cast<T>(sum_of_losses / static_cast<double>(rows.count));
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
template <class O, class T = Sum<O>>
void subtract_positives(const Rows<O>& rows, std::int64_t first, std::int64_t second, T* tile) {
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
template <class O, class T = Sum<O>>
void add_gradient(const Rows<O>& rows, std::int64_t first, std::int64_t second, Sum<O> scale, const T* lse,
                  const T* inverse, T* grad) {
    alignas(64) T tile[kTile * kTile];
    if (inverse != nullptr) {
        exponentials(rows, first, second, scale, tile);
        plain_weights(tile, inverse + first * kTile, inverse + second * kTile);
    } else {
        similarities(rows, first, second, scale, tile);
        const auto of = [&](std::int64_t block) { return BlockLse<T>(lse, lse + rows.count, rows.count, block); };
        weigh(tile, kTile, of(first), of(second));
    }
    subtract_positives(rows, first, second, tile);
    const Weights<O> weights(tile, kTile, kTile, {true, first != second});
    accumulate_product<O, false>(weights, rows.row_block(second), rows.columns, grad + first * kTile * rows.columns);
    if (first != second)
        accumulate_product<O, true>(weights, rows.row_block(first), rows.columns, grad + second * kTile * rows.columns);
}

template <class O, class T = Sum<O>>
void backward(const T* grad_loss, const void* z0, const void* z1, const T* lse, std::int64_t n, std::int64_t d,
              DType dtype, double temperature, void* grad0, void* grad1, int threads) {
    Rows<O> rows(n, d, true);
    pack_all(rows, z0, z1, dtype, threads);
    const std::int64_t padded = rows.blocks * kTile, elements = padded * rows.columns;
    Buffer<T> grad(elements), inverse(padded);
    // padding is masked in every tile; a real log-sum-exp there keeps its exponentials finite
    for (std::int64_t i = 0; i < padded; ++i) {
        const std::int64_t row = i < rows.count ? i : rows.count - 1;
        const double whole = static_cast<double>(lse[row]) + static_cast<double>(lse[rows.count + row]);
        inverse.get()[i] = static_cast<T>(::exp(-whole));
    }
#pragma omp parallel for num_threads(for_elements(threads, elements)) schedule(static)
    for (std::int64_t i = 0; i < elements; ++i) grad.get()[i] = T(0);
    const T scale = static_cast<T>(1.0 / temperature);
    const T* inverses = rows.plain(scale) ? inverse.get() : nullptr;
    for_each_tile(rows.order(), threads, [&](std::int64_t first, std::int64_t second) {
        add_gradient(rows, first, second, scale, lse, inverses, grad.get());
    });
    const T factor = *grad_loss * static_cast<T>(1.0 / (temperature * static_cast<double>(rows.count)));
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
#pragma omp parallel for num_threads(for_elements(threads, elements)) schedule(static)
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
    const auto run = [&](auto operand) {
        using O = decltype(operand);
        forward<O>(z0, z1, n, d, dtype, temperature, loss, static_cast<Sum<O>*>(lse), threads);
    };
    with_operand(dtype, threads, run, Numbers{z0, n * d, dtype}, Numbers{z1, n * d, dtype});
}

void nt_xent_backward(const void* grad, const void* z0, const void* z1, const void* lse, std::int64_t n,
                      std::int64_t d, DType dtype, double temperature, void* grad0, void* grad1, int threads) {
    const auto run = [&](auto operand) {
        using O = decltype(operand);
        backward<O>(static_cast<const Sum<O>*>(grad), z0, z1, static_cast<const Sum<O>*>(lse), n, d, dtype, temperature,
                    grad0, grad1, threads);
    };
    with_operand(dtype, threads, run, Numbers{z0, n * d, dtype}, Numbers{z1, n * d, dtype});
}

}  // namespace fastssl::FASTSSL_ISA
