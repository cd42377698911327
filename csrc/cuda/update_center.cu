// The center of DINO's teacher (Caron et al. 2021, arXiv:2104.14294, eq. 4).
//
//   center_k = momentum * center_k + (1 - momentum) * mean over rows of rows_bk
//
// Grid: one block for 256 columns of a stretch of rows. Where the columns alone give enough blocks to fill a GPU, a
// stretch is all rows (up to 512) and its block writes the center; else the stretches' sums are rows of the scratch
// memory, which a second launch of the same kernel sums. Block: 8 warps, each taking every eighth row, 8 columns a
// thread in accesses of 16 bytes where the addresses allow; the warps' sums meet in shared memory. Sums are in float
// (double for an f64 center), at most 64 rows in a row before others are added, in an order that depends on the sizes
// alone. Bytes moved: rows read once.
// CUDA and not Triton: nothing but memory traffic.
// Reference and tests: fastssl/ops/update_center.py, tests/ops/test_update_center.py.
#include "update_center.h"

#include "columns.cuh"
#include "common.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kWidth = 32 * kPack;
constexpr std::int64_t kFewestRows = 4 * kWarps, kMostRows = 64 * kWarps;  // of a stretch, if there are as many
constexpr std::int64_t kBlocks = 256;                                      // fill a large GPU, two on each processor

// How many stretches the rows are cut into.
std::int64_t stretches(std::int64_t count, std::int64_t columns) {
    const std::int64_t least = parts(count, kMostRows), most = parts(count, kFewestRows);
    const std::int64_t filling = parts(kBlocks, parts(columns, kWidth));
    return filling < least ? least : filling < most ? filling : most;
}

// The sum of the warp's rows from `row` up to below `last`.
template <class T, class S, bool kPacked>
__device__ void add_rows(const S* rows, std::int64_t row, std::int64_t last, const Columns<kPacked>& at,
                         T (&sums)[kPack]) {
#pragma unroll 4
    for (; row < last; row += kWarps) {
        T values[kPack];
        load(rows + row * at.end, at, T(0), values);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sums[k] += values[k];
    }
}

// What becomes of the columns' sums: rows of `sums`, or a share of the center where that is not null.
template <class T>
struct Result {
    T* sums;
    T* center;
    T momentum, rate;
};

// Two blocks must fit a multiprocessor: there are no more in a launch, so each may use half of the registers.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2) sum_columns_kernel(Matrix rows, std::int64_t stretch, Result<T> result) {
    __shared__ T sums[kWarps][kWidth];
    const unsigned blocks = static_cast<unsigned>(parts(rows.columns, kWidth));  // to a stretch
    const std::int64_t part = blockIdx.x / blocks, begin = part * stretch;
    const std::int64_t last = begin + stretch < rows.rows ? begin + stretch : rows.rows;
    const int warp = threadIdx.x / 32;
    const std::int64_t first = std::int64_t{blockIdx.x % blocks} * kWidth;
    const Columns<kPacked> at{first, rows.columns, static_cast<int>(threadIdx.x % 32), 32};
    T mine[kPack] = {};
    with_summand<T>(rows.dtype, [&](auto type) {
        add_rows(static_cast<const decltype(type)*>(rows.data), begin + warp, last, at, mine);
    });
#pragma unroll
    for (int k = 0; k < kPack; ++k) sums[warp][at[k] - at.first] = mine[k];
    __syncthreads();
    const std::int64_t column = at.first + threadIdx.x;
    if (column >= rows.columns) return;
    T total = sums[0][threadIdx.x];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) total += sums[i][threadIdx.x];
    if (result.center != nullptr)  // without momentum nothing of the old center is left, infinity and NaN neither
        result.center[column] =
            (result.momentum == T(0) ? T(0) : result.momentum * result.center[column]) + result.rate * total;
    else
        result.sums[part * rows.columns + column] = total;
}

template <class T>
cudaError_t sum_columns(const Matrix& rows, std::int64_t stretch, const Result<T>& result, cudaStream_t stream) {
    const bool packed = packable(rows.columns, {rows.data});
    const auto kernel = packed ? sum_columns_kernel<T, true> : sum_columns_kernel<T, false>;
    const std::int64_t blocks = parts(rows.rows, stretch) * parts(rows.columns, kWidth);
    return launch(kernel, blocks, kThreads, 0, stream, rows, stretch, result);
}

template <class T>
cudaError_t update(T* center, DType dtype, const Matrix& rows, double momentum, T* scratch, cudaStream_t stream) {
    const T rate = static_cast<T>((1.0 - momentum) / static_cast<double>(rows.rows));
    const Result<T> blended{nullptr, center, static_cast<T>(momentum), rate};
    const std::int64_t count = stretches(rows.rows, rows.columns), stretch = parts(rows.rows, count);
    if (count == 1) return sum_columns(rows, stretch, blended, stream);
    const cudaError_t error = sum_columns(rows, stretch, Result<T>{scratch, nullptr, T(0), T(0)}, stream);
    if (error != cudaSuccess) return error;
    const Matrix sums{scratch, dtype, parts(rows.rows, stretch), rows.columns};
    return sum_columns(sums, sums.rows, blended, stream);
}

}  // namespace

cudaError_t update_center(void* center, DType center_dtype, const void* rows, std::int64_t count, std::int64_t columns,
                          DType rows_dtype, double momentum, void* scratch, cudaStream_t stream) {
    if (momentum == 1.0) return cudaSuccess;  // the center stays, whatever the rows hold
    const Matrix matrix{rows, rows_dtype, count, columns};
    const auto run = [&](auto type) {
        using T = decltype(type);
        return update(static_cast<T*>(center), center_dtype, matrix, momentum, static_cast<T*>(scratch), stream);
    };
    return center_dtype == DType::f64 ? run(double{}) : run(float{});
}

std::int64_t update_center_scratch(DType center_dtype, std::int64_t count, std::int64_t columns) {
    const std::int64_t kept = stretches(count, columns);
    return kept == 1 ? 0 : kept * columns * (center_dtype == DType::f64 ? 8 : 4);
}

}  // namespace fastssl::cuda
