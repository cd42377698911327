// Cuts tiles from the cells of a grid, in any order, and normalises each (Noroozi and Favaro 2016, arXiv:1603.09246,
// section 4.2; Doersch et al. 2015, arXiv:1505.05192).
//
//   out = (x - mean) / sqrt(variance + kEpsilon), for each channel of a tile by itself
//
// Grid: one block a channel of a tile. Block: 128 threads; up to 32 lanes share a row of the tile and move 8 elements at a
// time where the tile's place in its image lies on 16 bytes, else one. A tile to be normalised is read from memory once: of
// up to 47 KB it waits in shared memory for the mean and then the variance, a larger one in the caches.
// Sums in float (double for f64), in an order that depends on the sizes and the tile's place alone.
// Bytes moved: what is taken, read and written once.
// CUDA and not Triton: rows at any offset, nothing but memory traffic.
// Reference and tests: fastssl/ops/tiles.py, tests/ops/test_tiles.py.
#include "tiles.h"

#include "packs.cuh"
#include "reduce.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 128;
constexpr std::size_t kShared = 47 * 1024;  // of the 48 KB that every GPU gives without being asked; sums take the rest
constexpr double kEpsilon = 1e-5;           // torch.nn.functional.instance_norm's

struct Sizes {
    std::int64_t n, channels, image_height, image_width, count, rows, columns, height, width;

    __host__ __device__ std::int64_t area() const { return height * width; }
    __device__ std::int64_t plane() const { return image_height * image_width; }
};

// Rows of elements.
template <class S>
struct Rows {
    S* first;
    std::int64_t stride;
};

// The first pixel of a tile in its image, which is divided into cells of equal size; what is left over lies around them.
// -1 where the cell or the offset in it is outside.
__device__ std::int64_t corner(const Sizes& s, std::int64_t cell, const std::int64_t* offsets) {
    if (cell < 0 || cell >= s.rows * s.columns) return -1;
    const std::int64_t cell_height = s.image_height / s.rows, cell_width = s.image_width / s.columns;
    const std::int64_t top = (s.image_height - s.rows * cell_height) / 2 + cell / s.columns * cell_height;
    const std::int64_t left = (s.image_width - s.columns * cell_width) / 2 + cell % s.columns * cell_width;
    const std::int64_t down = offsets != nullptr ? offsets[2 * cell] : (cell_height - s.height) / 2;
    const std::int64_t right = offsets != nullptr ? offsets[2 * cell + 1] : (cell_width - s.width) / 2;
    if (down < 0 || down > cell_height - s.height || right < 0 || right > cell_width - s.width) return -1;
    return (top + down) * s.image_width + left + right;
}

// Calls f(row, column) for the thread's share of a tile, N elements at a time.
template <int N, class F>
__device__ void for_each(const Sizes& s, int lanes, F f) {
    for (std::int64_t y = threadIdx.x / lanes; y < s.height; y += kThreads / lanes)
        for (std::int64_t x = std::int64_t{threadIdx.x % lanes} * N; x < s.width; x += lanes * N) f(y, x);
}

template <int N, class S>
__device__ void copy(Rows<const S> from, Rows<S> to, const Sizes& s, int lanes) {
    for_each<N>(s, lanes, [&](std::int64_t y, std::int64_t x) {
        Accumulator<S> values[N];
        load(from.first + y * from.stride + x, values);
        store(to.first + y * to.stride + x, values);
    });
}

// `kept`: room for the tile, or null.
template <int N, class S>
__device__ void standardize(Rows<const S> from, Rows<S> to, const Sizes& s, int lanes, S* kept) {
    using A = Accumulator<S>;
    A values[N], sum = 0, squares = 0;
    for_each<N>(s, lanes, [&](std::int64_t y, std::int64_t x) {
        load(from.first + y * from.stride + x, values);
        if (kept != nullptr) store_shared(kept + y * s.width + x, values);
#pragma unroll
        for (int k = 0; k < N; ++k) sum += values[k];
    });
    if (kept != nullptr) from = {kept, s.width};  // each thread reads what it has written
    const A mean = reduce_block<kThreads>(sum, Plus{}) / static_cast<A>(s.area());
    for_each<N>(s, lanes, [&](std::int64_t y, std::int64_t x) {
        load(from.first + y * from.stride + x, values);
#pragma unroll
        for (int k = 0; k < N; ++k) squares += (values[k] - mean) * (values[k] - mean);
    });
    const A variance = reduce_block<kThreads>(squares, Plus{}) / static_cast<A>(s.area());
    const A scale = A(1) / sqrt(variance + static_cast<A>(kEpsilon));
    for_each<N>(s, lanes, [&](std::int64_t y, std::int64_t x) {
        load(from.first + y * from.stride + x, values);
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] = (values[k] - mean) * scale;
        store(to.first + y * to.stride + x, values);
    });
}

template <int N, class S>
__device__ void cut(Rows<const S> from, Rows<S> to, const Sizes& s, bool normalize, S* kept) {
    const int lanes = s.width <= N ? 1 : s.width <= 8 * N ? 8 : 32;
    if (normalize)
        standardize<N>(from, to, s, lanes, kept);
    else
        copy<N>(from, to, s, lanes);
}

// packed: rows of images and tiles lie on 16 bytes; whether a tile's do depends on its place.
template <class S>
__global__ void __launch_bounds__(kThreads)
    tiles_kernel(const S* images, const std::int64_t* order, const std::int64_t* offsets, Sizes s, bool normalize,
                 bool packed, bool keep, S* out) {
    const std::int64_t tile = blockIdx.x / s.channels, channel = blockIdx.x % s.channels, image = tile / s.count;
    const std::int64_t first =
        corner(s, order[tile], offsets == nullptr ? offsets : offsets + image * s.rows * s.columns * 2);
    const Rows<S> to{out + (tile * s.channels + channel) * s.area(), s.width};
    if (first < 0) {
        for (std::int64_t i = threadIdx.x; i < s.area(); i += kThreads)
            to.first[i] = narrow<S>(not_a_number<Accumulator<S>>());
        return;
    }
    const Rows<const S> from{images + (image * s.channels + channel) * s.plane() + first, s.image_width};
    S* const kept = keep ? dynamic_shared<S>() : nullptr;
    if (packed && first % kPack == 0)
        cut<kPack>(from, to, s, normalize, kept);
    else
        cut<1>(from, to, s, normalize, kept);
}

template <class S>
cudaError_t launch_tiles(const void* images, const std::int64_t* order, const std::int64_t* offsets, const Sizes& s,
                         bool normalize, void* out, cudaStream_t stream) {
    const std::size_t bytes = static_cast<std::size_t>(s.area()) * sizeof(S);
    const bool keep = normalize && bytes <= kShared;
    const bool packed =
        s.width % kPack == 0 && s.image_width % kPack == 0 && on_16_bytes(images) && on_16_bytes(out);
    return launch(tiles_kernel<S>, s.n * s.count * s.channels, kThreads, keep ? bytes : 0,
                  stream, static_cast<const S*>(images), order, offsets, s, normalize, packed, keep, static_cast<S*>(out));
}

}  // namespace

cudaError_t tiles(const void* images, const std::int64_t* order, const std::int64_t* offsets, std::int64_t n,
                  std::int64_t channels, std::int64_t image_height, std::int64_t image_width, std::int64_t count,
                  std::int64_t rows, std::int64_t columns, std::int64_t height, std::int64_t width, DType dtype,
                  bool normalize, void* out, cudaStream_t stream) {
    const Sizes s{n, channels, image_height, image_width, count, rows, columns, height, width};
    switch (dtype) {
        case DType::f32: return launch_tiles<float>(images, order, offsets, s, normalize, out, stream);
        case DType::bf16: return launch_tiles<__nv_bfloat16>(images, order, offsets, s, normalize, out, stream);
        case DType::f16: return launch_tiles<__half>(images, order, offsets, s, normalize, out, stream);
        case DType::f64: return launch_tiles<double>(images, order, offsets, s, normalize, out, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace fastssl::cuda
