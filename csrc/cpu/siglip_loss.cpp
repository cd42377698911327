// The sigmoid loss of image and text pairs, forward and backward (SigLIP, Zhai et al. 2023, arXiv:2303.15343, eq. 1).
//
//   l_ij = scale <a_i, b_j> + bias, z_ij = 1 for i = j and -1 otherwise      loss = sum_ij log(1 + exp(-z_ij l_ij)) / n
//   G_ij = -z_ij sigmoid(-z_ij l_ij) / n      dloss/da_i = scale sum_j G_ij b_j, dloss/db_j = scale sum_i G_ij a_i,
//   dloss/dbias = sum_ij G_ij
//
// No pair needs another's sum, so one pass gives the loss and all gradients up to a factor: 6 n^2 d floating-point
// operations (4 for one side, 2 for none), an exponential and a quotient for each pair. Rounds: pairs.h.
//
// bfloat16 rows are multiplied as they are where the processor can (operand.h), with G rounded to bfloat16, and float
// rows in parts where it has a matrix unit (matrix_unit.h).
// Accumulated in float (double for f64), the loss and the bias's gradient over rows in double. Extra memory: 5 n d
// elements, 9.5 in parts; nothing grows with n^2.
// Reference and tests: fastssl/ops/siglip_loss.py, tests/ops/test_siglip_loss.py.
#include "siglip_loss.h"

#include <math.h>

#include "pairs.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// Terms of atanh's series at 1/3 or less: the remainder is under half a unit of the last place.
template <class T>
constexpr int kTerms = sizeof(T) == sizeof(float) ? 8 : 17;

// log(1 + e^x) and its derivative e^x / (1 + e^x), without overflow, and exact where they are small.
template <class T>
inline void softplus(Vec<T> x, Vec<T>* value, Vec<T>* slope) {
    const Vec<T> zero = {};
    const Vec<T> e = exp<T>(-vmax(x, -x));
    // one quotient serves 1 / (1 + e) and e / (2 + e)
    const Vec<T> quotient = T(1) / ((e + T(1)) * (e + T(2)));
    const Vec<T> inverse = (e + T(2)) * quotient;
    *slope = x < zero ? e * inverse : inverse;
    const Vec<T> z = e * (e + T(1)) * quotient, square = z * z;  // log(1 + e) = 2 atanh(z)
    Vec<T> series = broadcast<T>(T(1) / (2 * kTerms<T> + 1));
#pragma GCC unroll 17
    for (int k = kTerms<T> - 1; k >= 0; --k) series = series * square + T(1) / (2 * k + 1);
    *value = vmax(x, zero) + T(2) * z * series;
}

// Replaces similarities by the slopes of -z log sigmoid and adds each lane's losses and slopes to what it has.
template <class T>
void add_tile(T* tile, int rows, T bias, T* losses, T* slopes) {
    for (int i = 0; i < kTile; i += kWidth<T>) {
        Vec<T> loss = {}, slope = {};
        for (int j = 0; j < rows; ++j) {
            Vec<T> value, derivative;
            softplus<T>(load<T>(tile + j * kTile + i) + bias, &value, &derivative);
            loss += value;
            slope += derivative;
            store<T>(tile + j * kTile + i, derivative);
        }
        store<T>(losses + i, load<T>(losses + i) + loss);
        store<T>(slopes + i, load<T>(slopes + i) + slope);
    }
}

struct Problem {
    RowMatrix a, b;
    double scale;
    int threads;
};

template <class T>
struct Results {
    T* loss;
    T* slope;
    T* direction_a;
    T* direction_b;
};

template <class O, class T = Sum<O>>
void forward(const Problem& problem, T bias, const Results<T>& out) {
    const std::int64_t n = problem.a.rows, d = problem.a.d, padded = problem.a.blocks() * kTile;
    const int threads = problem.threads;
    const T scale = static_cast<T>(problem.scale);
    const Lanes<O> lanes(problem.a, threads);
    const PackedRows<O> inner(problem.b, threads), a_as_inner(problem.a, threads);
    const RowSums<T> sums_a(problem.a, out.direction_a != nullptr, threads);
    const RowSums<T> sums_b(problem.b, out.direction_b != nullptr, threads);
    Buffer<T> losses(padded), slopes(padded), positives(padded);
    for (std::int64_t i = 0; i < padded; ++i) losses.get()[i] = slopes.get()[i] = T(0);

    for_each_pair<T>(problem.a.blocks(), threads, [&](std::int64_t first, std::int64_t second, T* tile) {
        const int lane_count = problem.a.size(first), rows = problem.b.size(second);
        const std::int64_t row = first * kTile;
        similarities<O>(inner.block(second), rows, lanes.block(first), lane_count, d, scale, tile);
        for (int i = 0; first == second && i < rows; ++i) {  // a pair is no negative: minus infinity adds nothing
            positives.get()[row + i] = tile[i * kTile + i] + bias;
            tile[i * kTile + i] = -kInfinity<T>;
        }
        add_tile(tile, rows, bias, losses.get() + row, slopes.get() + row);
        for (int i = 0; first == second && i < rows; ++i)
            tile[i * kTile + i] = static_cast<T>(-1.0 / (1.0 + ::exp(static_cast<double>(positives.get()[row + i]))));
        const Weights<O> weights(tile, rows, lane_count, {out.direction_b != nullptr, out.direction_a != nullptr});
        if (out.direction_a != nullptr)
            add_rows_to_lanes(weights, inner.block(second), rows, lane_count, d, sums_a.block(first));
        if (out.direction_b != nullptr)
            add_lanes_to_rows(weights, a_as_inner.block(first), rows, lane_count, d, sums_b.block(second));
    });

    double loss = 0, slope = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        const double x = static_cast<double>(positives.get()[i]), e = ::exp(x < 0 ? x : -x);
        loss += static_cast<double>(losses.get()[i]) + (x < 0 ? -x : 0.0) + ::log1p(e);
        slope += static_cast<double>(slopes.get()[i]) - (x < 0 ? 1.0 : e) / (1.0 + e);
    }
    *out.loss = static_cast<T>(loss / static_cast<double>(n));
    *out.slope = static_cast<T>(slope / static_cast<double>(n));
    const T factor = scale * static_cast<T>(1.0 / static_cast<double>(n));
    if (out.direction_a != nullptr) sums_a.write(factor, out.direction_a, threads);
    if (out.direction_b != nullptr) sums_b.write(factor, out.direction_b, threads);
}

template <class T>
void multiply(T grad, const T* direction, std::int64_t count, DType dtype, void* out, int threads) {
    with_type(dtype, [&](auto type) {
        auto* products = static_cast<decltype(type)*>(out);
#pragma omp parallel for num_threads(for_elements(threads, count)) schedule(static)
        for (std::int64_t i = 0; i < count; ++i) narrow(grad * direction[i], products[i]);
    });
}

}  // namespace

void siglip_loss_forward(const void* a, const void* b, const void* bias, std::int64_t n, std::int64_t d, DType a_dtype,
                         DType b_dtype, double scale, void* loss, void* slope, void* direction_a, void* direction_b,
                         int threads) {
    const Problem problem{{a, n, d, a_dtype}, {b, n, d, b_dtype}, scale, at_most(threads, tiles(n, n))};
    const auto run = [&](auto operand) {
        using T = Sum<decltype(operand)>;
        forward<decltype(operand)>(problem, *static_cast<const T*>(bias),
                                   Results<T>{static_cast<T*>(loss), static_cast<T*>(slope),
                                              static_cast<T*>(direction_a), static_cast<T*>(direction_b)});
    };
    with_operand(beside(a_dtype, b_dtype), problem.threads, run, problem.a.numbers(), problem.b.numbers());
}

void siglip_loss_backward(const void* grad, const void* direction, std::int64_t count, DType dtype, bool wide,
                          void* out, int threads) {
    if (wide)
        multiply(*static_cast<const double*>(grad), static_cast<const double*>(direction), count, dtype, out, threads);
    else
        multiply(*static_cast<const float*>(grad), static_cast<const float*>(direction), count, dtype, out, threads);
}

}  // namespace fastssl::FASTSSL_ISA
