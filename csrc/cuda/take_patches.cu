// The patches that a masked autoencoder's encoder sees (He et al. 2021, arXiv:2111.06377), with their position embedding.
//
//   out[b, k] = x[b, ids[b, k]] + pos[ids[b, k]]
//   grad_x[b, l] = sum of grad[b, k] over the k with ids[b, k] = l      grad_pos[l] = sum of grad_x[b, l] over b
//
// Forward. Grid: one block 256 / lanes rows of the output; up to 32 lanes share a row and move 8 elements at a time.
// Backward. One block a sample first inverts `ids`: the first and last k of each l, by integer minima and maxima, so the order
// of threads tells nothing. Then each row l is gathered, never scattered: up to 32 lanes a row and a piece of its width, for a
// group of samples, whose sum stays in registers and becomes a row of the scratch; a last launch sums over the groups.
// An index given more than once is found by reading on in `ids`, in the order of k.
// Sums in float (double for f64), samples in groups of 16. No atomics on floats: the same bits each time.
// Bytes moved: forward, the rows taken read once and written once; backward, `grad` read once and `grad_x` written once,
// 16 bytes a row for the inverse, and the sums over the groups, at most 1/16 of the rows in float.
// CUDA and not Triton: nothing but memory traffic, by rows that indices name.
// Reference and tests: fastssl/ops/take_patches.py, tests/ops/test_take_patches.py.
#include "take_patches.h"

#include "patches.cuh"

namespace fastssl::cuda {
namespace {

struct Sizes {
    std::int64_t batch, length, kept, width;
};

template <int N, class X, class O>
__global__ void __launch_bounds__(kPatchThreads, 1)
    take_kernel(PatchRows<X> x, const std::int64_t* ids, const O* pos, Sizes s, int lanes, O* out) {
    const std::int64_t row = std::int64_t{blockIdx.x} * (kPatchThreads / lanes) + threadIdx.x / lanes;
    if (row >= s.batch * s.kept) return;
    const std::int64_t id = ids[row];
    out += row * s.width;
    if (id < 0 || id >= s.length)
        write_nan<N>(out, s.width, lanes);
    else
        write_placed<N>(x.row(row / s.kept, id), pos == nullptr ? pos : pos + id * s.width, out, s.width, lanes);
}

template <int N, class X, class O>
__global__ void __launch_bounds__(kPatchThreads, 1)
    give_back_kernel(PatchRows<O> grad, const std::int64_t* ids, const Named* named, Sizes s, PatchGrid grid, X* grad_x,
                     Accumulator<O>* sums) {
    using A = Accumulator<O>;
    const PatchPlace at(grid, s.batch, N);
    if (at.row >= s.length || at.element >= s.width) return;
    SampleSum<N, A> pos;
    named += at.row;
    Named next = named[at.begin * s.length];
    for (std::int64_t b = at.begin; b < at.end; ++b) {
        const Named of_row = next;
        if (b + 1 < at.end) next = named[(b + 1) * s.length];  // on its way while this sample's row is
        A sum[N] = {};
        if (of_row.last >= 0) {
            load(grad.row(b, of_row.first) + at.element, sum);
            add_further(grad, ids + b * s.kept, b, of_row, at.row, at.element, sum);
        }
        if (grad_x != nullptr) store(grad_x + (b * s.length + at.row) * s.width + at.element, sum);
        add(pos.group, sum);
        if ((b - at.begin) % kSummedSamples == kSummedSamples - 1) pos.close();
    }
    pos.close();
    if (sums != nullptr) store(sums + (blockIdx.y * s.length + at.row) * s.width + at.element, pos.total);
}

template <int N, class X, class O>
cudaError_t take(const PatchRows<X>& x, const std::int64_t* ids, const O* pos, const Sizes& s, O* out,
                 cudaStream_t stream) {
    const int lanes = lanes_of(s.width, N);
    const std::int64_t blocks = parts(s.batch * s.kept, kPatchThreads / lanes);
    return launch(take_kernel<N, X, O>, blocks, kPatchThreads, 0, stream, x, ids, pos, s, lanes, out);
}

std::int64_t named_bytes(std::int64_t batch, std::int64_t length) {
    return parts(batch * length * static_cast<std::int64_t>(sizeof(Named)), 16) * 16;
}

template <int N, class X, class O>
cudaError_t give_back(const PatchRows<O>& grad, const std::int64_t* ids, const Sizes& s, X* grad_x, O* grad_pos,
                      void* scratch, cudaStream_t stream) {
    if (s.length * s.width == 0) return cudaSuccess;
    const PatchGrid grid(s.batch, s.length, s.width, N);
    auto* named = static_cast<Named*>(scratch);
    auto* sums = grad_pos == nullptr ? nullptr
                                     : reinterpret_cast<Accumulator<O>*>(static_cast<char*>(scratch) +
                                                                         named_bytes(s.batch, s.length));
    if (s.batch > 0) {
        cudaError_t error = invert(ids, s.batch, s.kept, s.length, named, stream);
        if (error == cudaSuccess)
            error = launch(give_back_kernel<N, X, O>, grid.launched(), kPatchThreads, 0, stream, grad, ids, named, s, grid,
                           grad_x, sums);
        if (error != cudaSuccess) return error;
    }
    return grad_pos == nullptr ? cudaSuccess : sum_rows(sums, grid.groups, s.length * s.width, grad_pos, stream);
}

}  // namespace

cudaError_t take_patches_forward(const void* x, std::int64_t sample_stride, std::int64_t row_stride, DType x_dtype,
                                 std::int64_t batch, std::int64_t length, std::int64_t width, const std::int64_t* ids,
                                 std::int64_t kept, const void* pos, void* out, DType out_dtype, cudaStream_t stream) {
    if (batch * kept * width == 0) return cudaSuccess;
    const Sizes s{batch, length, kept, width};
    return with_patch_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using X = decltype(x_type);
        using O = decltype(out_type);
        const PatchRows<X> rows{static_cast<const X*>(x), sample_stride, row_stride};
        const bool packed = in_packs(rows, width, {pos, out});
        return (packed ? take<kPack, X, O> : take<1, X, O>)(rows, ids, static_cast<const O*>(pos), s,
                                                            static_cast<O*>(out), stream);
    });
}

cudaError_t take_patches_backward(const void* grad, std::int64_t sample_stride, std::int64_t row_stride, DType out_dtype,
                                  std::int64_t batch, std::int64_t kept, std::int64_t width, const std::int64_t* ids,
                                  std::int64_t length, void* grad_x, DType x_dtype, void* grad_pos, void* scratch,
                                  cudaStream_t stream) {
    const Sizes s{batch, length, kept, width};
    return with_patch_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using X = decltype(x_type);
        using O = decltype(out_type);
        const PatchRows<O> rows{static_cast<const O*>(grad), sample_stride, row_stride};
        const bool packed = in_packs(rows, width, {grad_x});
        return (packed ? give_back<kPack, X, O> : give_back<1, X, O>)(rows, ids, s, static_cast<X*>(grad_x),
                                                                      static_cast<O*>(grad_pos), scratch, stream);
    });
}

std::int64_t take_patches_scratch(std::int64_t batch, std::int64_t length, std::int64_t width,
                                  std::int64_t accumulator_bytes, bool need_pos) {
    const PatchGrid grid(batch, length, width, kPack);
    return named_bytes(batch, length) + (need_pos ? grid.groups * length * width * accumulator_bytes : 0);
}

}  // namespace fastssl::cuda
