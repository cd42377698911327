// Masks of rectangular blocks (BEiT, Bao et al. 2021, arXiv:2106.08254, algorithm 1), filled up to an exact count.
//
// Of each attempt, with what is left to mask and four numbers u in [0, 1):
//   area in [min(min_block, left), min(max_block, left)]   rows = round(sqrt(area ratio))   columns = round(sqrt(area / ratio))
// and the block is taken if it fits into the grid and adds no more than is left. What is left in the end goes to the free
// patches of least noise: the greatest key among them is found bit by bit from the highest, so nothing is sorted.
//
// Grid: one block a sample. Block: one warp, four for more than 1024 patches. A row of patches is a row of bits in shared
// memory, whose words the threads share, so counting what a block adds takes a few instructions and one sum over threads;
// the attempts of a sample follow one another, and all threads draw the same.
// Every choice is one product and one rounding towards zero, and no product is added to: the reference's bits. Only
// integers are summed.
// Bytes moved: noise read once from memory, a byte a patch written.
// CUDA and not Triton: loops that depend on what was drawn, and bits.
// Reference and tests: fastssl/ops/block_masking.py, tests/ops/test_block_masking.py.
#include "block_masking.h"

#include "noise_order.cuh"
#include "packs.cuh"
#include "reduce.cuh"

namespace fastssl::cuda {
namespace {

using Bits = unsigned long long;
constexpr int kWordBits = 64;

struct Grid {
    int height, width;
    __host__ __device__ int words() const { return (width + kWordBits - 1) / kWordBits; }  // of a row
    __host__ __device__ int patches() const { return height * width; }
};

struct Block {
    int top, left, rows, columns;
};

// What the blocks of a call have in common.
struct Shapes {
    double aspect[kMaxRatios];
    int ratios, min_block, max_block, attempts;
};

// Which of `count` equal parts of [0, 1) u is in, the nearest one if outside; NaN is in the first.
__device__ int chosen(float u, int count) {
    const float part = u * static_cast<float>(count), last = static_cast<float>(count - 1);
    return static_cast<int>(part > 0 ? (part < last ? part : last) : 0.0f);
}

__device__ double side(double square) { return max(1.0, floor(sqrt(square) + 0.5)); }

// The block that four numbers choose; false if the grid is too small for it.
__device__ bool draw(const float* u, int left, const Shapes& shapes, const Grid& grid, Block& block) {
    const int low = min(left, shapes.min_block), high = min(left, shapes.max_block);
    const double area = low + chosen(u[0], high - low + 1);
    const double ratio = shapes.aspect[chosen(u[1], shapes.ratios)];
    const double rows = side(area * ratio), columns = side(area / ratio);
    if (rows > grid.height || columns > grid.width) return false;
    block.rows = static_cast<int>(rows);
    block.columns = static_cast<int>(columns);
    block.top = chosen(u[2], grid.height - block.rows + 1);
    block.left = chosen(u[3], grid.width - block.columns + 1);
    return true;
}

// The columns of a block that are in one word of a row.
__device__ Bits columns_in(const Block& block, int word) {
    const int first = max(block.left - word * kWordBits, 0), end = min(block.left + block.columns - word * kWordBits, kWordBits);
    return first < end ? ~Bits{0} >> (kWordBits - (end - first)) << first : 0;
}

// Calls f(word of the mask, the block's columns in it) for the thread's share of the block's words.
template <int kThreads, class F>
__device__ void for_each_word(Bits* mask, const Block& block, const Grid& grid, F f) {
    const int words = grid.words();
    for (int i = threadIdx.x; i < block.rows * words; i += kThreads)
        f(mask[block.top * words + i], columns_in(block, i % words));
}

// Draws blocks into `mask`, which is empty; the patches that are left to mask, in every thread.
template <int kThreads>
__device__ int mask_blocks(const float* noise, int left, const Shapes& shapes, const Grid& grid, Bits* mask) {
    for (int attempt = 0; attempt < shapes.attempts && left > 0; ++attempt) {
        Block block;
        if (!draw(noise + 4 * attempt, left, shapes, grid, block)) continue;
        int added = 0;
        for_each_word<kThreads>(mask, block, grid, [&](Bits& word, Bits columns) { added += __popcll(columns & ~word); });
        added = reduce_block<kThreads>(added, Plus{});
        if (added > left) continue;
        for_each_word<kThreads>(mask, block, grid, [](Bits& word, Bits columns) { word |= columns; });
        __syncthreads();
        left -= added;
    }
    return left;
}

__device__ bool is_masked(const Bits* mask, const Grid& grid, int patch) {
    const int y = patch / grid.width, x = patch % grid.width;
    return (mask[y * grid.words() + x / kWordBits] >> (x % kWordBits) & 1) != 0;
}

// The greatest key among the `left` least of the free patches, which are at least as many. left > 0.
template <int kThreads>
__device__ std::uint64_t greatest_key(const float* noise, int left, const Grid& grid, const Bits* mask) {
    const int patches = grid.patches();
    const int index_bits = 32 - __clz(patches - 1);
    std::uint64_t greatest = 0;
    for (int bit = 63; bit >= 0; --bit) {
        if (bit < 32 && bit >= index_bits) continue;  // no patch has it
        int without = 0;
        for (int i = threadIdx.x; i < patches; i += kThreads)
            without += !is_masked(mask, grid, i) && sort_key(noise[i], i) >> bit == greatest >> bit;
        without = reduce_block<kThreads>(without, Plus{});
        if (without >= left) continue;
        left -= without;
        greatest |= std::uint64_t{1} << bit;
    }
    return greatest;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    block_masking_kernel(const float* noise, const std::int64_t* counts, const __grid_constant__ Shapes shapes, Grid grid,
                         bool* out) {
    Bits* const mask = dynamic_shared<Bits>();
    const int patches = grid.patches();
    noise += blockIdx.x * (4 * std::int64_t{shapes.attempts} + patches);
    out += blockIdx.x * std::int64_t{patches};
    const std::int64_t count = counts[blockIdx.x];
    const int wanted = static_cast<int>(count < 0 ? 0 : count > patches ? patches : count);
    for (int i = threadIdx.x; i < grid.height * grid.words(); i += kThreads) mask[i] = 0;
    __syncthreads();
    const int left = mask_blocks<kThreads>(noise, wanted, shapes, grid, mask);
    noise += 4 * shapes.attempts;
    const std::uint64_t greatest = left > 0 ? greatest_key<kThreads>(noise, left, grid, mask) : 0;
    for (int i = threadIdx.x; i < patches; i += kThreads)
        out[i] = is_masked(mask, grid, i) || (left > 0 && sort_key(noise[i], i) <= greatest);
}

}  // namespace

cudaError_t block_masking(const float* noise, const std::int64_t* counts, const double* aspect, std::int64_t batch,
                          std::int64_t height, std::int64_t width, std::int64_t attempts, std::int64_t min_block,
                          std::int64_t max_block, std::int64_t ratios, bool* mask, cudaStream_t stream) {
    const Grid grid{static_cast<int>(height), static_cast<int>(width)};
    const std::int64_t bytes = height * parts(width, kWordBits) * static_cast<std::int64_t>(sizeof(Bits));
    if (bytes > kMaxMaskBytes || ratios > kMaxRatios) return cudaErrorInvalidValue;
    Shapes shapes{{}, static_cast<int>(ratios), static_cast<int>(min_block), static_cast<int>(max_block),
                  static_cast<int>(attempts)};
    for (std::int64_t i = 0; i < ratios; ++i) shapes.aspect[i] = aspect[i];
    const bool many = grid.patches() > 1024;
    return launch(many ? block_masking_kernel<128> : block_masking_kernel<32>, batch, many ? 128 : 32,
                  static_cast<std::size_t>(bytes), stream, noise, counts, shapes, grid, mask);
}

}  // namespace fastssl::cuda
