// Sums in two phases, for a GPU's blocks cannot wait for one another: each leaves a row of partial sums, a second launch
// adds the rows, in an order that depends on the sizes alone.
#pragma once

#include "common.cuh"

namespace fastssl::cuda {

// Sums over the threads of the block that are multiples of `lanes` apart, in the first `lanes` threads. `lanes` and
// the block's size are powers of two; `memory` holds N values a thread.
template <int N, class A>
__device__ inline void sum_of_teams(A (&values)[N], int lanes, A* memory) {
    const int me = threadIdx.x, threads = blockDim.x;
#pragma unroll
    for (int k = 0; k < N; ++k) memory[k * threads + me] = values[k];
    for (int step = threads / 2; step >= lanes; step /= 2) {
        __syncthreads();
        if (me >= step) continue;
#pragma unroll
        for (int k = 0; k < N; ++k) memory[k * threads + me] += memory[k * threads + me + step];
    }
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] = memory[k * threads + me];
}

// out[c] = sum over r of partial[r][c]. Block: columns by slices of the rows, a power of two.
template <class A, class O>
__global__ void sum_rows_kernel(const A* partial, std::int64_t rows, std::int64_t columns, O* out) {
    A* const memory = dynamic_shared<A>() + threadIdx.x;
    const std::int64_t column = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    A sum = 0;
    if (column < columns)
        for (std::int64_t row = threadIdx.y; row < rows; row += blockDim.y) sum += partial[row * columns + column];
    memory[threadIdx.y * blockDim.x] = sum;
    for (unsigned step = blockDim.y / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.y < step) memory[threadIdx.y * blockDim.x] += memory[(threadIdx.y + step) * blockDim.x];
    }
    if (threadIdx.y == 0 && column < columns) out[column] = narrow<O>(memory[0]);
}

// partial (rows, columns), of which there may be no rows, -> out (columns). columns > 0.
template <class A, class O>
inline cudaError_t sum_rows(const A* partial, std::int64_t rows, std::int64_t columns, O* out, cudaStream_t stream) {
    const dim3 block = rows < 32 ? dim3(256, 1) : dim3(32, 8);
    const std::int64_t blocks = (columns + block.x - 1) / block.x;
    return launch(sum_rows_kernel<A, O>, blocks, block, 256 * sizeof(A), stream, partial, rows, columns, out);
}

}  // namespace fastssl::cuda
