// What a masked autoencoder's decoder sees (He et al. 2021, arXiv:2111.06377): encoded patches put back in their places, a
// learned token in all others, and the position embedding.
//
//   out[b, l] = (x[b, i] if i < kept else token) + pos[l],  i = ids[b, l]
//   grad_x[b, k] = sum of grad[b, l] over the l with ids[b, l] = k
//   grad_token = sum of grad[b, l] over the (b, l) with ids[b, l] >= kept      grad_pos[l] = sum of grad[b, l] over b
//
// Forward. Grid: one block 256 / lanes rows of the output; up to 32 lanes share a row and move 8 elements at a time.
// Backward. One block a sample first inverts `ids`: the first and last l of each k, by integer minima and maxima, so the order
// of threads tells nothing. Then up to 32 lanes have a row l and a piece of its width for a group of samples: what they read
// goes to the row of grad_x that it names first, and into sums for the group in registers, which become a row of the
// scratch, the token's first summed over the block; a last launch sums each over its rows.
// An index given more than once is found by reading on in `ids`, in the order of l.
// Sums in float (double for f64), samples in groups of 16. No atomics on floats: the same bits each time.
// Bytes moved: forward, x read once and the output written once; backward, `grad` read once and `grad_x` written once,
// 16 bytes a row for the inverse, and the sums over the groups, at most 1/16 of the rows in float.
// CUDA and not Triton: nothing but memory traffic, by rows that indices name.
// Reference and tests: fastssl/ops/restore_patches.py, tests/ops/test_restore_patches.py.
#include "restore_patches.h"

#include "patches.cuh"

namespace fastssl::cuda {
namespace {

struct Sizes {
    std::int64_t batch, length, kept, width;
};

template <int N, class X, class O>
__global__ void __launch_bounds__(kPatchThreads, 1) restore_kernel(PatchRows<X> x, const std::int64_t* ids, const O* token,
                                                                const O* pos, Sizes s, int lanes, O* out) {
    const std::int64_t row = std::int64_t{blockIdx.x} * (kPatchThreads / lanes) + threadIdx.x / lanes;
    if (row >= s.batch * s.length) return;
    const std::int64_t id = ids[row], sample = row / s.length;
    const O* place = pos == nullptr ? pos : pos + (row - sample * s.length) * s.width;
    out += row * s.width;
    if (id < 0 || id >= s.length)
        write_nan<N>(out, s.width, lanes);
    else if (id < s.kept)
        write_placed<N>(x.row(sample, id), place, out, s.width, lanes);
    else
        write_placed<N>(token, place, out, s.width, lanes);
}

// Where gradients go; null: not asked for. `token` and `pos` are rows of sums.
template <class X, class A>
struct Gradients {
    X* x;
    A *token, *pos;
};

// What row l of sample b gives to grad_x, if it is the first of its index `id`; and zeros to row l, if no index names that.
template <int N, class X, class O, class A>
__device__ void give_to_x(const PatchRows<O>& grad, const std::int64_t* ids, std::int64_t id, const Named* named,
                          std::int64_t b, const PatchPlace& at, const Sizes& s, const A (&values)[N], X* grad_x) {
    named += b * s.kept;
    grad_x += b * s.kept * s.width + at.element;
    if (id >= 0 && id < s.kept && named[id].first == at.row) {
        A sum[N] = {};
        add(sum, values);
        add_further(grad, ids + b * s.length, b, named[id], id, at.element, sum);
        store(grad_x + id * s.width, sum);
    }
    if (at.row < s.kept && named[at.row].last < 0) {
        const A nothing[N] = {};
        store(grad_x + at.row * s.width, nothing);
    }
}

// Three blocks share a multiprocessor's registers: 24 warps' rows are on their way at a time.
template <int N, class X, class O>
__global__ void __launch_bounds__(kPatchThreads, sizeof(Accumulator<O>) == 4 ? 3 : 1)
    give_back_kernel(PatchRows<O> grad, const std::int64_t* ids, const Named* named, Sizes s, PatchGrid grid,
                     Gradients<X, Accumulator<O>> to) {
    using A = Accumulator<O>;
    const PatchPlace at(grid, s.batch, N);
    const bool inside = at.row < s.length && at.element < s.width;
    SampleSum<N, A> token, pos;
    std::int64_t next = inside ? ids[at.begin * s.length + at.row] : 0;
#pragma unroll 1
    for (std::int64_t b = at.begin; inside && b < at.end; ++b) {
        const std::int64_t id = next;
        if (b + 1 < at.end) next = ids[(b + 1) * s.length + at.row];  // on its way while this sample's row is
        A values[N];
        load(grad.row(b, at.row) + at.element, values);
        if (to.x != nullptr) give_to_x(grad, ids, id, named, b, at, s, values, to.x);
        add(pos.group, values);
        if (id >= s.kept && id < s.length) add(token.group, values);
        if ((b - at.begin) % kSummedSamples != kSummedSamples - 1) continue;
        pos.close();
        token.close();
    }
    pos.close();
    token.close();
    if (inside && to.pos != nullptr) store(to.pos + (blockIdx.y * s.length + at.row) * s.width + at.element, pos.total);
    if (to.token == nullptr) return;
    sum_of_teams(token.total, grid.lanes, dynamic_shared<A>());
    const std::int64_t block = blockIdx.y * grid.blocks + blockIdx.x / grid.pieces;
    if (static_cast<int>(threadIdx.x) < grid.lanes && at.element < s.width)
        store(to.token + block * s.width + at.element, token.total);
}

template <int N, class X, class O>
cudaError_t restore(const PatchRows<X>& x, const std::int64_t* ids, const O* token, const O* pos, const Sizes& s, O* out,
                    cudaStream_t stream) {
    const int lanes = lanes_of(s.width, N);
    const std::int64_t blocks = parts(s.batch * s.length, kPatchThreads / lanes);
    return launch(restore_kernel<N, X, O>, blocks, kPatchThreads, 0, stream, x, ids, token, pos, s, lanes, out);
}

// The scratch of a backward: the inverse, the token's sums and the position embedding's, in accumulators.
struct Scratch {
    std::int64_t token, pos, bytes;  // the first byte of each, and of what follows
    Scratch(const Sizes& s, std::int64_t accumulator_bytes, bool need_token, bool need_pos) {
        const PatchGrid grid(s.batch, s.length, s.width, 1);  // of all, that with the most blocks
        const auto end = [&](std::int64_t first, std::int64_t size) { return first + parts(size, 16) * 16; };
        token = end(0, s.batch * s.kept * static_cast<std::int64_t>(sizeof(Named)));
        pos = end(token, need_token ? grid.groups * grid.blocks * s.width * accumulator_bytes : 0);
        bytes = end(pos, need_pos ? grid.groups * s.length * s.width * accumulator_bytes : 0);
    }
};

template <int N, class X, class O>
cudaError_t give_back(const PatchRows<O>& grad, const std::int64_t* ids, const Sizes& s, X* grad_x, O* grad_token,
                      O* grad_pos, void* memory, cudaStream_t stream) {
    using A = Accumulator<O>;
    if (s.width == 0) return cudaSuccess;
    const PatchGrid grid(s.batch, s.length, s.width, N);
    const Scratch scratch(s, sizeof(A), grad_token != nullptr, grad_pos != nullptr);
    char* const bytes = static_cast<char*>(memory);
    auto* const named = static_cast<Named*>(memory);
    Gradients<X, A> to{grad_x, grad_token == nullptr ? nullptr : reinterpret_cast<A*>(bytes + scratch.token),
                       grad_pos == nullptr ? nullptr : reinterpret_cast<A*>(bytes + scratch.pos)};
    cudaError_t error = cudaSuccess;
    if (s.batch * s.length > 0) {
        if (s.kept == 0) to.x = nullptr;
        if (to.x != nullptr) error = invert(ids, s.batch, s.length, s.kept, named, stream);
        if (error == cudaSuccess)
            error = launch(give_back_kernel<N, X, O>, grid.launched(), kPatchThreads,
                           to.token == nullptr ? 0 : kPatchThreads * N * sizeof(A), stream, grad, ids, named, s, grid, to);
    }
    if (error == cudaSuccess && grad_token != nullptr)
        error = sum_rows(to.token, grid.groups * grid.blocks, s.width, grad_token, stream);
    if (error == cudaSuccess && grad_pos != nullptr && s.length > 0)
        error = sum_rows(to.pos, grid.groups, s.length * s.width, grad_pos, stream);
    return error;
}

}  // namespace

cudaError_t restore_patches_forward(const void* x, std::int64_t sample_stride, std::int64_t row_stride, DType x_dtype,
                                    std::int64_t batch, std::int64_t kept, std::int64_t width, const std::int64_t* ids,
                                    std::int64_t length, const void* token, const void* pos, void* out,
                                    DType out_dtype, cudaStream_t stream) {
    if (batch * length * width == 0) return cudaSuccess;
    const Sizes s{batch, length, kept, width};
    return with_patch_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using X = decltype(x_type);
        using O = decltype(out_type);
        const PatchRows<X> rows{static_cast<const X*>(x), sample_stride, row_stride};
        const bool packed = in_packs(rows, width, {token, pos, out});
        return (packed ? restore<kPack, X, O> : restore<1, X, O>)(rows, ids, static_cast<const O*>(token),
                                                                  static_cast<const O*>(pos), s, static_cast<O*>(out),
                                                                  stream);
    });
}

cudaError_t restore_patches_backward(const void* grad, std::int64_t sample_stride, std::int64_t row_stride,
                                     DType out_dtype, std::int64_t batch, std::int64_t length, std::int64_t width,
                                     const std::int64_t* ids, std::int64_t kept, void* grad_x, DType x_dtype,
                                     void* grad_token, void* grad_pos, void* scratch, cudaStream_t stream) {
    const Sizes s{batch, length, kept, width};
    return with_patch_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using X = decltype(x_type);
        using O = decltype(out_type);
        const PatchRows<O> rows{static_cast<const O*>(grad), sample_stride, row_stride};
        const bool packed = in_packs(rows, width, {grad_x});
        return (packed ? give_back<kPack, X, O> : give_back<1, X, O>)(rows, ids, s, static_cast<X*>(grad_x),
                                                                      static_cast<O*>(grad_token),
                                                                      static_cast<O*>(grad_pos), scratch, stream);
    });
}

std::int64_t restore_patches_scratch(std::int64_t batch, std::int64_t length, std::int64_t kept, std::int64_t width,
                                     std::int64_t accumulator_bytes, bool need_token, bool need_pos) {
    return Scratch({batch, length, kept, width}, accumulator_bytes, need_token, need_pos).bytes;
}

}  // namespace fastssl::cuda
