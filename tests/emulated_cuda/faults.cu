// Kernels with a fault each, which the emulator must find: tests/ops/test_emulated.py runs them by name.
#include <cstdio>
#include <string>

#include "../../csrc/cuda/common.cuh"

using namespace fastssl::cuda;

namespace {

constexpr int kThreads = 64;

// Each thread takes its neighbour's number through shared memory; without the barrier it may come too early.
__global__ void rotate(int* out, bool barrier) {
    int* const shared = dynamic_shared<int>();
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (barrier) __syncthreads();
    out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

__global__ void half_a_barrier(int* out) {
    if (threadIdx.x % 32 < 16) __syncthreads();
    __syncwarp();
    out[threadIdx.x] = 1;
}

__global__ void gone_lane(int* out) {
    if (threadIdx.x % 32 == 5) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}

__global__ void beyond_shared(int* out) {
    dynamic_shared<int>()[threadIdx.x + 1] = 1;
    out[threadIdx.x] = 1;
}

__global__ void shared_as_global(int* out) {
    int4* const shared = dynamic_shared<int4>();
    __stwb(shared + threadIdx.x, int4{1, 2, 3, 4});
    out[threadIdx.x] = shared[threadIdx.x].x;
}

__global__ void local_as_global(int* out) {
    int own = static_cast<int>(threadIdx.x);
    out[threadIdx.x] = __ldg(&own);
}

__global__ void misaligned(int* out) { *reinterpret_cast<int4*>(out + 1) = int4{1, 2, 3, 4}; }

__global__ void unwritten_shared(int* out) { out[threadIdx.x] = dynamic_shared<int>()[threadIdx.x]; }

__global__ void sum(int* out) {
    int total = static_cast<int>(threadIdx.x);
    for (int step = 16; step > 0; step /= 2) total += __shfl_down_sync(0xffffffffu, total, step);
    const unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x % 2);
    out[threadIdx.x] = threadIdx.x % 32 == 0 ? total : static_cast<int>(odd);
}

cudaError_t run(const std::string& name, int* out) {
    const std::size_t shared = kThreads * sizeof(int);
    auto* const stream = reinterpret_cast<cudaStream_t>(emulator::kStream);
    if (name == "rotate") return launch(rotate, 1, kThreads, shared, stream, out, true);
    if (name == "no_barrier") return launch(rotate, 1, kThreads, shared, stream, out, false);
    if (name == "half_a_barrier") return launch(half_a_barrier, 1, kThreads, 0, stream, out);
    if (name == "gone_lane") return launch(gone_lane, 1, kThreads, 0, stream, out);
    if (name == "beyond_shared") return launch(beyond_shared, 1, kThreads, shared, stream, out);
    if (name == "shared_as_global") return launch(shared_as_global, 1, kThreads, 4 * shared, stream, out);
    if (name == "local_as_global") return launch(local_as_global, 1, kThreads, 0, stream, out);
    if (name == "misaligned") return launch(misaligned, 1, 1, 0, stream, out);
    if (name == "unwritten_shared") return launch(unwritten_shared, 1, kThreads, shared, stream, out);
    if (name == "sum") return launch(sum, 1, kThreads, 0, stream, out);
    if (name == "too_many_threads") return launch(sum, 1, 1025, 0, stream, out);
    if (name == "too_many_blocks") return launch(sum, std::int64_t{1} << 32 | 1, kThreads, 0, stream, out);
    if (name == "too_many_down") return launch(sum, Blocks(1, 65536), kThreads, 0, stream, out);
    if (name == "too_much_shared") return launch(sum, 1, kThreads, 49 * 1024, stream, out);
    if (name == "another_stream") return launch(sum, 1, kThreads, 0, nullptr, out);
    return launch(sum, 0, kThreads, 0, stream, out);  // no_blocks
}

}  // namespace

// Two launches; prints CUDA's words for both, and what they left.
int main(int, char** names) {
    for (int i = 0; i < 2; ++i) {
        alignas(16) int out[kThreads] = {};
        std::printf("%s:", cudaGetErrorString(run(names[1], out)));
        for (int value : out) std::printf(" %d", value);
        std::printf("\n");
    }
}
