// Sinkhorn-Knopp assignment of samples (rows) to prototypes (columns), as SwAV does (arXiv:2006.09882, section 3.1).
//
//   x = scores / temp, u = 0
//   each iteration: v_k = log sum_b exp(x_bk - u_b), u_b = log sum_k exp(x_bk - v_k)
//   out_bk = exp(x_bk - v_k - u_b)
//
// The scaling vectors are kept as logarithms and each sum is taken under its own maximum: the result is that of one
// maximum subtracted from all scores, no sum can vanish, and nothing depends on values that the host would have to
// read. All logarithms are to base 2: 2^x costs a GPU less than e^x and is as accurate (exp2f, which errs by 2 units in
// the last place at most), for the conversion's factor is part of the temperature.
//
// Grid, twice an iteration: one block a strip of 64 columns (16 where there are few), which reads all rows of its strip
// for v, then again, out of the nearest cache while a strip fits there, for what each row comes to over the strip; then
// one block a row to make u of that. Last, one block for 2048 columns of a row writes the result. Blocks of 256
// threads, 8 columns a thread in accesses of 16 bytes where the addresses allow. Summed in float (double for f64) in an
// order that depends on the sizes alone. Bytes moved: scores read once an iteration and once more, out written once;
// two numbers for each row and strip written and read an iteration. The exponentials are never stored: they are two for
// each score and iteration.
// CUDA and not Triton: nothing but memory traffic and exponentials. Not yet run on a GPU.
// Reference and tests: fastssl/ops/sinkhorn_knopp.py, tests/ops/test_sinkhorn_knopp.py.
#include "sinkhorn_knopp.h"

#include <limits>

#include "columns.cuh"
#include "common.cuh"
#include "reduce.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kFewestLanes = 2, kMostLanes = 8, kWidest = kMostLanes * kPack;
constexpr std::int64_t kStrips = 256;  // fill a large GPU, two on each processor
constexpr double kLog2E = 1.4426950408889634;

template <class T>
constexpr T kLowest = std::numeric_limits<T>::lowest();
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

__device__ inline float power_of_2(float x) { return exp2f(x); }
__device__ inline double power_of_2(double x) { return exp2(x); }
__device__ inline float logarithm(float x) { return log2f(x); }
__device__ inline double logarithm(double x) { return log2(x); }

// Of numbers x: their maximum, but no less than the lowest finite number, and the sum of 2^(x - maximum).
template <class T>
struct alignas(2 * sizeof(T)) Peak {
    T maximum, total;
};

template <class T>
__device__ Peak<T> merged(Peak<T> a, Peak<T> b) {
    const T most = Maximum{}(a.maximum, b.maximum);
    return {most, a.total * power_of_2(a.maximum - most) + b.total * power_of_2(b.maximum - most)};
}

template <class T>
__device__ T log_sum(Peak<T> peak) { return peak.maximum + logarithm(peak.total); }

template <class T>
struct Problem {
    Matrix scores;
    T scale;         // log2(e) / temp
    int lanes;       // threads side by side in a strip
    T* v;            // (columns)
    Peak<T>* peaks;  // (rows, strips)
    T* u;            // (rows)

    __host__ __device__ std::int64_t strips() const { return (scores.columns + lanes * kPack - 1) / (lanes * kPack); }
    __device__ int down() const { return kThreads / lanes; }
};

// Rows that a thread loads before it uses the first.
template <class T>
constexpr int kGroup = sizeof(T) == 4 ? 4 : 2;

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

// Over the thread's rows, for each of its columns: of x - u. `u` null: of x.
template <class T, bool kPacked>
__device__ void column_peaks(const Problem<T>& p, const T* u, const Columns<kPacked>& at,
                             Peak<T> (&peaks)[kPack]) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) peaks[k] = {kLowest<T>, T(0)};
    for (std::int64_t row = threadIdx.x / p.lanes; row < p.scores.rows; row += kGroup<T> * p.down()) {
        T x[kGroup<T>][kPack];
        load_group(p, row, at, x);
#pragma unroll
        for (int i = 0; i < kGroup<T>; ++i) {
            const std::int64_t mine = row + i * p.down();
            const T less = u == nullptr || mine >= p.scores.rows ? T(0) : u[mine];
#pragma unroll
            for (int k = 0; k < kPack; ++k) x[i][k] = x[i][k] * p.scale - less;
        }
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            T most = peaks[k].maximum, total = 0;
#pragma unroll
            for (int i = 0; i < kGroup<T>; ++i) most = Maximum{}(most, x[i][k]);
#pragma unroll
            for (int i = 0; i < kGroup<T>; ++i) total += power_of_2(x[i][k] - most);
            peaks[k] = {most, peaks[k].total * power_of_2(peaks[k].maximum - most) + total};
        }
    }
}

// What a block's warps tell one another.
template <class T>
struct Exchange {
    Peak<T> peaks[kWarps][kWidest];
    T v[kWidest];
};

// Merges the columns' peaks over the block's rows into v; 0 for columns beyond the end.
template <class T, bool kPacked>
__device__ void make_v(const Problem<T>& p, const Columns<kPacked>& at, Peak<T> (&peaks)[kPack], Exchange<T>& shared) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, column = threadIdx.x;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        for (int step = p.lanes; step < kWarp; step *= 2)
            peaks[k] = merged(peaks[k], {__shfl_xor_sync(0xffffffffu, peaks[k].maximum, step),
                                         __shfl_xor_sync(0xffffffffu, peaks[k].total, step)});
        if (lane < p.lanes) shared.peaks[warp][at[k] - at.first] = peaks[k];
    }
    __syncthreads();
    if (column < p.lanes * kPack) {
        Peak<T> all = shared.peaks[0][column];
        for (int i = 1; i < kWarps; ++i) all = merged(all, shared.peaks[i][column]);
        const bool exists = at.first + column < at.end;
        shared.v[column] = exists ? log_sum(all) : T(0);
        if (exists) p.v[at.first + column] = shared.v[column];
    }
    __syncthreads();
}

// Over the strip's columns, for each row: of x - v.
template <class T, bool kPacked>
__device__ void row_peaks(const Problem<T>& p, const Columns<kPacked>& at, const T (&v)[kPack]) {
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
                x[i][k] = x[i][k] * p.scale - v[k];
                peak.maximum = Maximum{}(peak.maximum, x[i][k]);
            }
            peak.maximum = reduce_lanes(peak.maximum, Maximum{}, 1, p.lanes);
#pragma unroll
            for (int k = 0; k < kPack; ++k) peak.total += power_of_2(x[i][k] - peak.maximum);
            peak.total = reduce_lanes(peak.total, Plus{}, 1, p.lanes);
            if (at.lane == 0 && row < p.scores.rows) p.peaks[row * strips + blockIdx.x] = peak;
        }
    }
}

template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1) strip_kernel(Problem<T> p, const T* u) {
    __shared__ Exchange<T> shared;
    const std::int64_t first = std::int64_t{blockIdx.x} * p.lanes * kPack;
    const Columns<kPacked> at{first, p.scores.columns, static_cast<int>(threadIdx.x) % p.lanes, p.lanes};
    Peak<T> peaks[kPack];
    column_peaks(p, u, at, peaks);
    make_v(p, at, peaks, shared);
    T v[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) v[k] = shared.v[at[k] - at.first];
    row_peaks(p, at, v);
}

template <class T>
__global__ void __launch_bounds__(kThreads) row_kernel(Problem<T> p) {
    const std::int64_t strips = p.strips();
    const Peak<T>* const peaks = p.peaks + blockIdx.x * strips;
    Peak<T> all{kLowest<T>, T(0)};
    for (std::int64_t i = threadIdx.x; i < strips; i += kThreads)
        all.maximum = Maximum{}(all.maximum, peaks[i].maximum);
    all.maximum = reduce_block<kThreads>(all.maximum, Maximum{});
    for (std::int64_t i = threadIdx.x; i < strips; i += kThreads)
        all.total += peaks[i].total * power_of_2(peaks[i].maximum - all.maximum);
    all.total = reduce_block<kThreads>(all.total, Plus{});
    if (threadIdx.x == 0) p.u[blockIdx.x] = log_sum(all);
}

template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads) assign_kernel(Problem<T> p, T* out) {
    constexpr int kWidth = kThreads * kPack;
    const unsigned blocks = static_cast<unsigned>((p.scores.columns + kWidth - 1) / kWidth);  // to a row
    const std::int64_t row = blockIdx.x / blocks;
    const std::int64_t first = std::int64_t{blockIdx.x % blocks} * kWidth;
    const Columns<kPacked> at{first, p.scores.columns, static_cast<int>(threadIdx.x), kThreads};
    T x[kPack], v[kPack];
    with_summand<T>(p.scores.dtype, [&](auto type) {
        load(static_cast<const decltype(type)*>(p.scores.data) + row * at.end, at, T(0), x);
    });
    load(p.v, at, T(0), v);
    const T u = p.u[row];
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = power_of_2((x[k] * p.scale - v[k]) - u);
    store(out + row * at.end, at, x);
}

template <class T, bool kPacked>
cudaError_t assign(const Problem<T>& p, std::int64_t iterations, T* out, cudaStream_t stream) {
    const auto rows = static_cast<unsigned>(p.scores.rows), strips = static_cast<unsigned>(p.strips());
    for (std::int64_t i = 0; i < iterations; ++i) {
        cudaError_t error = launch(strip_kernel<T, kPacked>, strips, kThreads, 0, stream, p, i == 0 ? nullptr : p.u);
        if (error == cudaSuccess) error = launch(row_kernel<T>, rows, kThreads, 0, stream, p);
        if (error != cudaSuccess) return error;
    }
    const auto blocks = static_cast<unsigned>((p.scores.columns + kThreads * kPack - 1) / (kThreads * kPack));
    return launch(assign_kernel<T, kPacked>, rows * blocks, kThreads, 0, stream, p, out);
}

int lanes_of(std::int64_t columns) { return columns < kStrips * kWidest ? kFewestLanes : kMostLanes; }

// v takes whole packs of the scratch memory.
std::int64_t padded(std::int64_t columns) { return (columns + kPack - 1) / kPack * kPack; }

}  // namespace

cudaError_t sinkhorn_knopp(const void* scores, std::int64_t rows, std::int64_t columns, DType dtype, double temp,
                           std::int64_t iterations, void* out, void* scratch, cudaStream_t stream) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        Problem<T> p{{scores, dtype, rows, columns}, static_cast<T>(kLog2E / temp), lanes_of(columns)};
        p.v = static_cast<T*>(scratch);
        p.peaks = reinterpret_cast<Peak<T>*>(p.v + padded(columns));
        p.u = reinterpret_cast<T*>(p.peaks + rows * p.strips());
        return packable(columns, {scores, out}) ? assign<T, true>(p, iterations, static_cast<T*>(out), stream)
                                                : assign<T, false>(p, iterations, static_cast<T*>(out), stream);
    };
    return dtype == DType::f64 ? run(double{}) : run(float{});
}

std::int64_t sinkhorn_knopp_scratch(std::int64_t rows, std::int64_t columns, DType dtype) {
    const std::int64_t width = lanes_of(columns) * kPack, strips = (columns + width - 1) / width;
    return (padded(columns) + 2 * rows * strips + rows) * (dtype == DType::f64 ? 8 : 4);
}

}  // namespace fastssl::cuda
