// Sinkhorn-Knopp assignment of samples (rows) to prototypes (columns), as SwAV does (arXiv:2006.09882, section 3.1).
//
//   x = scores / temp, u = 1
//   each iteration: v_k = (rows / columns) / sum_b exp(x_bk) u_b, u_b = 1 / sum_k exp(x_bk) v_k
//   out_bk = exp(x_bk) u_b v_k
//
// Each sum is taken under its own maximum, and u and v are kept as powers of two and factors near 1: the result is that
// of one maximum subtracted from all scores, no sum can vanish, and nothing depends on values that the host would have
// to read. The powers are of 2 (of e for f64) and their exponents whole, so subtracting them from x adds no error.
// exp2f errs by 2 units in the last place at most: it is as accurate as expf, and costs less.
//
// Grid, twice an iteration: one block a strip of 64 columns (16 where there are few), which reads all rows of its strip
// for v, then again, out of the nearest cache while a strip fits there, for what each row comes to over the strip; then
// one block a row to make u of that. Last, one block for 2048 columns of 8 rows writes the result. Blocks of 256
// threads, 8 columns a thread in accesses of 16 bytes where the addresses allow. Summed in float (double for f64) in an
// order that depends on the sizes alone. Bytes moved: scores read once an iteration and once more, out written once;
// two numbers for each row and strip written and read an iteration. The exponentials are never stored: they are two for
// each score and iteration.
// CUDA and not Triton: nothing but memory traffic and exponentials.
// Reference and tests: fastssl/ops/sinkhorn_knopp.py, tests/ops/test_sinkhorn_knopp.py.
#include "sinkhorn_knopp.h"

#include "columns.cuh"
#include "common.cuh"
#include "reduce.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFewestLanes = 2, kMostLanes = 8, kWidest = kMostLanes * kPack;
constexpr std::int64_t kStrips = 256;  // fill a large GPU, two on each processor
constexpr std::int64_t kBlockColumns = kThreads * kPack, kBlockRows = 8;  // of the result
constexpr double kLog2E = 1.4426950408889634;

// To the base 2 for float; to the base e for double, whose logits are then rounded as the reference's are.
__device__ inline float power(float x) { return exp2f(x); }
__device__ inline double power(double x) { return exp(x); }
__device__ inline float logit(float score, float unit) { return score * unit; }  // unit: log2(e) / temp
__device__ inline double logit(double score, double unit) { return score / unit; }  // temp
__device__ inline float whole_logarithm(float x) { return rintf(log2f(x)); }
__device__ inline double whole_logarithm(double x) { return rint(log(x)); }
__device__ inline float next_whole(float x) { return ceilf(x); }
__device__ inline double next_whole(double x) { return ceil(x); }

// Weighted numbers x: a whole number next to their maximum, but no less than the lowest finite one, and the sum of
// weight * power(x - maximum).
template <class T>
struct alignas(2 * sizeof(T)) Peak {
    T maximum, total;
};

// `count` of them that lie `stride` apart.
template <class T>
__device__ Peak<T> merged(const Peak<T>* peaks, int count, int stride) {
    Peak<T> all{kLowest<T>, T(0)};
    for (int i = 0; i < count; ++i) all.maximum = Maximum{}(all.maximum, peaks[i * stride].maximum);
    for (int i = 0; i < count; ++i)
        all.total += peaks[i * stride].total * power(peaks[i * stride].maximum - all.maximum);
    return all;
}

// An element of u or v: factor * power(-exponent), where the exponent is a whole number and the factor near 1.
template <class T>
struct alignas(2 * sizeof(T)) Scaling {
    T exponent, factor;
};

// What makes the sum `wanted`. Of a sum of 0, whose numbers are all -infinity, the factor is NaN.
template <class T>
__device__ Scaling<T> scaling_to(T wanted, Peak<T> sum) {
    const T total = sum.total / wanted, exponent = whole_logarithm(total);
    return {sum.maximum + exponent, power(exponent) / total};
}

template <class T>
struct Problem {
    Matrix scores;
    T unit;          // of the logits
    T mean;          // rows / columns: what the columns of the result add up to; u and v stay where they are
    int lanes;       // threads side by side in a strip
    Scaling<T>* v;   // (columns)
    Scaling<T>* u;   // (rows)
    Peak<T>* peaks;  // (rows, strips)

    __host__ __device__ std::int64_t strips() const { return parts(scores.columns, lanes * kPack); }
    __device__ int down() const { return kThreads / lanes; }
};

// Rows that a thread loads before it uses the first.
template <class T>
constexpr int kGroup = sizeof(T) == 4 ? 4 : 1;

// Scores of the thread's columns, of rows from `row` on that lie down() apart; -infinity where there are none.
template <class T, bool kPacked>
__device__ void load_group(const Problem<T>& p, std::int64_t row, const Columns<kPacked>& at,
                           T (&x)[kGroup<T>][kPack]) {
    with_summand<T>(p.scores.dtype, [&](auto type) {  // one branch, alike for the whole block
        const auto* scores = static_cast<const decltype(type)*>(p.scores.data);
#pragma unroll
        for (int i = 0; i < kGroup<T>; ++i) {
            const std::int64_t mine = row + i * p.down();
            if (mine < p.scores.rows) {
                load(scores + mine * at.end, at, -kInfinity<T>, x[i]);
            } else {
#pragma unroll
                for (int k = 0; k < kPack; ++k) x[i][k] = -kInfinity<T>;
            }
        }
    });
}

// Over the thread's rows, for each of its columns. `u` null: 1.
template <class T, bool kPacked>
__device__ void column_peaks(const Problem<T>& p, const Scaling<T>* u, const Columns<kPacked>& at,
                             Peak<T> (&peaks)[kPack]) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) peaks[k] = {kLowest<T>, T(0)};
    for (std::int64_t row = threadIdx.x / p.lanes; row < p.scores.rows; row += kGroup<T> * p.down()) {
        T x[kGroup<T>][kPack], factors[kGroup<T>];
        load_group(p, row, at, x);
#pragma unroll
        for (int i = 0; i < kGroup<T>; ++i) {
            const std::int64_t mine = row + i * p.down();
            const Scaling<T> of_row = u == nullptr || mine >= p.scores.rows ? Scaling<T>{T(0), T(1)} : u[mine];
            factors[i] = of_row.factor;
#pragma unroll
            for (int k = 0; k < kPack; ++k) x[i][k] = logit(x[i][k], p.unit) - of_row.exponent;
        }
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            T most = peaks[k].maximum, total = 0;
#pragma unroll
            for (int i = 0; i < kGroup<T>; ++i) most = Maximum{}(most, x[i][k]);
            most = next_whole(most);
#pragma unroll
            for (int i = 0; i < kGroup<T>; ++i) total += factors[i] * power(x[i][k] - most);
            peaks[k] = {most, peaks[k].total * power(peaks[k].maximum - most) + total};
        }
    }
}

// What a block's threads tell one another.
template <class T>
struct Exchange {
    Peak<T> of_thread[kThreads * kPack];  // [rows of threads][columns]
    Peak<T> of_eight[kThreads];           // over eight rows of those
    Scaling<T> v[kWidest];
};

// Merges the columns' peaks over the block's rows into v; there is 1 for columns beyond the end.
template <class T, bool kPacked>
__device__ void make_v(const Problem<T>& p, const Columns<kPacked>& at, const Peak<T> (&peaks)[kPack],
                       Exchange<T>& shared) {
    const int thread = threadIdx.x, width = p.lanes * kPack, column = thread % width, part = thread / width;
#pragma unroll
    for (int k = 0; k < kPack; ++k) shared.of_thread[thread / p.lanes * width + (at[k] - at.first)] = peaks[k];
    __syncthreads();
    shared.of_eight[thread] = merged(shared.of_thread + part * 8 * width + column, 8, width);
    __syncthreads();
    if (thread < width) {
        const bool exists = at.first + column < at.end;
        const Peak<T> all = merged(shared.of_eight + column, kThreads / width, width);
        shared.v[column] = exists ? scaling_to(p.mean, all) : Scaling<T>{T(0), T(1)};
        if (exists) p.v[at.first + column] = shared.v[column];
    }
    __syncthreads();
}

// Over the strip's columns, for each row.
template <class T, bool kPacked>
__device__ void row_peaks(const Problem<T>& p, const Columns<kPacked>& at, const Scaling<T> (&v)[kPack]) {
    const std::int64_t strips = p.strips(), first = threadIdx.x / kWarp * (kWarp / p.lanes);  // the warp's first row
    const int below = threadIdx.x % kWarp / p.lanes;
    for (std::int64_t warp_row = first; warp_row < p.scores.rows; warp_row += kGroup<T> * p.down()) {
        T x[kGroup<T>][kPack];
        load_group(p, warp_row + below, at, x);
#pragma unroll
        for (int i = 0; i < kGroup<T>; ++i) {
            const std::int64_t row = warp_row + below + i * p.down();
            Peak<T> peak{kLowest<T>, T(0)};
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                x[i][k] = logit(x[i][k], p.unit) - v[k].exponent;
                peak.maximum = Maximum{}(peak.maximum, x[i][k]);
            }
            peak.maximum = next_whole(reduce_lanes(peak.maximum, Maximum{}, p.lanes));
#pragma unroll
            for (int k = 0; k < kPack; ++k) peak.total += v[k].factor * power(x[i][k] - peak.maximum);
            peak.total = reduce_lanes(peak.total, Plus{}, p.lanes);
            if (at.lane == 0 && row < p.scores.rows) p.peaks[row * strips + blockIdx.x] = peak;
        }
    }
}

// Two blocks share a multiprocessor's registers: 32 KB of 16-bit rows are on their way at a time.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1)
    strip_kernel(Problem<T> p, const Scaling<T>* u) {
    __shared__ Exchange<T> shared;
    const std::int64_t first = std::int64_t{blockIdx.x} * p.lanes * kPack;
    const Columns<kPacked> at{first, p.scores.columns, static_cast<int>(threadIdx.x) % p.lanes, p.lanes};
    Peak<T> peaks[kPack];
    column_peaks(p, u, at, peaks);
    make_v(p, at, peaks, shared);
    Scaling<T> v[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) v[k] = shared.v[at[k] - at.first];
    row_peaks(p, at, v);
}

template <class T, int kOfRow>
__global__ void __launch_bounds__(kOfRow) row_kernel(Problem<T> p) {
    const std::int64_t strips = p.strips();
    const Peak<T>* const peaks = p.peaks + blockIdx.x * strips;
    Peak<T> all{kLowest<T>, T(0)};
    for (std::int64_t i = threadIdx.x; i < strips; i += kOfRow)
        all.maximum = Maximum{}(all.maximum, peaks[i].maximum);
    all.maximum = reduce_block<kOfRow>(all.maximum, Maximum{});
    for (std::int64_t i = threadIdx.x; i < strips; i += kOfRow)
        all.total += peaks[i].total * power(peaks[i].maximum - all.maximum);
    all.total = reduce_block<kOfRow>(all.total, Plus{});
    if (threadIdx.x == 0) p.u[blockIdx.x] = scaling_to(T(1), all);
}

template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads) assign_kernel(Problem<T> p, T* out) {
    const auto blocks = static_cast<unsigned>(parts(p.scores.columns, kBlockColumns));
    const std::int64_t first = std::int64_t{blockIdx.x % blocks} * kBlockColumns;
    const std::int64_t begin = blockIdx.x / blocks * kBlockRows;
    const std::int64_t last = begin + kBlockRows < p.scores.rows ? begin + kBlockRows : p.scores.rows;
    const Columns<kPacked> at{first, p.scores.columns, static_cast<int>(threadIdx.x), kThreads};
    Scaling<T> v[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) v[k] = at.has(k) ? p.v[at[k]] : Scaling<T>{T(0), T(1)};
    for (std::int64_t row = begin; row < last; ++row) {
        T x[kPack];
        with_summand<T>(p.scores.dtype, [&](auto type) {
            load(static_cast<const decltype(type)*>(p.scores.data) + row * at.end, at, T(0), x);
        });
        const Scaling<T> u = p.u[row];
#pragma unroll
        for (int k = 0; k < kPack; ++k)
            x[k] = power((logit(x[k], p.unit) - v[k].exponent) - u.exponent) * (v[k].factor * u.factor);
        store(out + row * at.end, at, x);
    }
}

template <class T, bool kPacked>
cudaError_t assign(const Problem<T>& p, std::int64_t iterations, T* out, cudaStream_t stream) {
    const std::int64_t rows = p.scores.rows, strips = p.strips();
    const bool few = strips < 8 * kWarp;
    const auto row = few ? row_kernel<T, kWarp> : row_kernel<T, kThreads>;
    const int threads = few ? kWarp : kThreads;
    for (std::int64_t i = 0; i < iterations; ++i) {
        cudaError_t error = launch(strip_kernel<T, kPacked>, strips, kThreads, 0, stream, p, i == 0 ? nullptr : p.u);
        if (error == cudaSuccess) error = launch(row, rows, threads, 0, stream, p);
        if (error != cudaSuccess) return error;
    }
    const std::int64_t blocks = parts(p.scores.rows, kBlockRows) * parts(p.scores.columns, kBlockColumns);
    return launch(assign_kernel<T, kPacked>, blocks, kThreads, 0, stream, p, out);
}

int lanes_of(std::int64_t columns) { return columns < kStrips * kWidest ? kFewestLanes : kMostLanes; }

}  // namespace

cudaError_t sinkhorn_knopp(const void* scores, std::int64_t rows, std::int64_t columns, DType dtype, double temp,
                           std::int64_t iterations, void* out, void* scratch, cudaStream_t stream) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        Problem<T> p{};
        p.scores = {scores, dtype, rows, columns};
        p.unit = static_cast<T>(dtype == DType::f64 ? temp : kLog2E / temp);
        p.mean = static_cast<T>(static_cast<double>(rows) / static_cast<double>(columns));
        p.lanes = lanes_of(columns);
        p.v = static_cast<Scaling<T>*>(scratch);
        p.u = p.v + columns;
        p.peaks = reinterpret_cast<Peak<T>*>(p.u + rows);
        return packable(columns, {scores, out}) ? assign<T, true>(p, iterations, static_cast<T*>(out), stream)
                                                : assign<T, false>(p, iterations, static_cast<T*>(out), stream);
    };
    return dtype == DType::f64 ? run(double{}) : run(float{});
}

std::int64_t sinkhorn_knopp_scratch(std::int64_t rows, std::int64_t columns, DType dtype) {
    return 2 * (columns + rows + rows * parts(columns, lanes_of(columns) * kPack)) * (dtype == DType::f64 ? 8 : 4);
}

}  // namespace fastssl::cuda
