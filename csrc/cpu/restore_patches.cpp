// What a masked autoencoder's decoder sees (He et al. 2021, arXiv:2111.06377): encoded patches put back in their places, a
// learned token in all others, and the position embedding.
//
//   out[b, l] = (x[b, i] if i < kept else token) + pos[l],  i = ids[b, l]
//   grad_x[b, k] = sum of grad[b, l] over the l with ids[b, l] = k
//   grad_token = sum of grad[b, l] over the (b, l) with ids[b, l] >= kept      grad_pos[l] = sum of grad[b, l] over b
//
// Bytes moved: forward, x read once and the output written once; backward, `grad` read once and `grad_x` written once.
// Sums are in float (double for f64): over the batch by groups of kSummedSamples, then over the rows of a block, then
// over the blocks, whose size depends on `length` alone. Threads share the blocks.
// Reference and tests: fastssl/ops/restore_patches.py, tests/ops/test_restore_patches.py.
#include "restore_patches.h"

#include "pages.h"

namespace fastssl::FASTSSL_ISA {
namespace {

template <class X, class O>
void restore(const PatchRows& x, std::int64_t batch, std::int64_t kept, const std::int64_t* ids, std::int64_t length,
             const O* token, const O* pos, O* out, int threads) {
    const bool past_caches =
        back_for_streaming(out, batch * length * x.width * static_cast<std::int64_t>(sizeof(O)), threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
        for (std::int64_t i = batch * length * share / threads; i < batch * length * (share + 1) / threads; ++i) {
            const O* place = pos == nullptr ? nullptr : pos + i % length * x.width;
            O* to = out + i * x.width;
            if (ids[i] < kept)
                write_placed(to, row_of<X>(x, i / length, ids[i]), place, x.width, past_caches);
            else
                write_placed(to, token, place, x.width, past_caches);
        }
        stream_fence();
    }
}

template <class X, class O>
struct Gradients {
    X* x;
    O *token, *pos;
};

// One thread's working memory: rows of sums.
template <class A>
struct Sums {
    A *duplicates, *pos, *token;
};

// Rows [begin, end) of samples [start, stop): writes the rows of grad_x first named there, and adds the sums over these
// samples to `totals`, a row for each l, and to `token`, one row.
template <class X, class O, class A>
void give_back_block(const PatchRows& grad, const std::int64_t* ids, std::int64_t length, std::int64_t kept,
                     const Inverse& inverse, const Gradients<X, O>& to, const std::int64_t (&rows)[2],
                     const std::int64_t (&samples)[2], const Sums<A>& sums, A* totals, A* token, bool past_caches) {
    for (std::int64_t l = rows[0]; l < rows[1]; ++l) {
        clear(sums.pos, grad.width);
        clear(sums.token, grad.width);
        for (std::int64_t b = samples[0]; b < samples[1]; ++b) {
            const std::int64_t i = ids[b * length + l];
            const O* row = row_of<O>(grad, b, l);
            if (b + 1 < samples[1]) prefetch(row_of<O>(grad, b + 1, l), grad.width);
            if (i < kept && to.x != nullptr && inverse.first(b, i) == l)
                write_sum<X, O>(to.x + (b * kept + i) * grad.width, grad, inverse, b, l, sums.duplicates, past_caches);
            const bool of_token = i >= kept && to.token != nullptr;
            if (of_token && to.pos != nullptr)
                add_row_to_both(sums.pos, sums.token, row, grad.width);
            else if (of_token || to.pos != nullptr)
                add_row(of_token ? sums.token : sums.pos, row, grad.width);
        }
        if (to.pos != nullptr) add_row(totals + l * grad.width, sums.pos, grad.width);
        if (to.token != nullptr) add_row(token, sums.token, grad.width);
    }
}

// grad_x is zero for the patches that no index names.
template <class X>
void clear_unnamed(const Inverse& inverse, std::int64_t batch, std::int64_t kept, std::int64_t width, X* grad_x) {
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t k = 0; k < kept; ++k)
            if (inverse.first(b, k) < 0)
                write_zeros(grad_x + (b * kept + k) * width, width, false);
}

template <class X, class O>
void give_back(const PatchRows& grad, std::int64_t batch, const std::int64_t* ids, std::int64_t length, std::int64_t kept,
               const Gradients<X, O>& to, int threads) {
    using A = Accumulator<O>;
    const std::int64_t width = grad.width;
    const std::int64_t block = length < 64 ? 1 : length < 256 ? length / 32 : 8, blocks = (length + block - 1) / block;
    const Inverse inverse(ids, batch, length, kept, threads);
    const Buffer<A> scratch(3 * width * threads), totals(to.pos == nullptr ? 1 : length * width), tokens(blocks * width);
    const bool past_caches =
        to.x != nullptr &&
        back_for_streaming(to.x, batch * kept * width * static_cast<std::int64_t>(sizeof(X)), threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
        A* own = scratch.get() + 3 * width * share;
        const Sums<A> sums{own, own + width, own + 2 * width};
        const std::int64_t first = blocks * share / threads, last = blocks * (share + 1) / threads;
        const std::int64_t begin = first * block, end = last * block < length ? last * block : length;
        clear(tokens.get() + first * width, (last - first) * width);
        if (to.pos != nullptr && begin < end) clear(totals.get() + begin * width, (end - begin) * width);
        for (std::int64_t start = 0; start < batch; start += kSummedSamples) {
            const std::int64_t stop = start + kSummedSamples < batch ? start + kSummedSamples : batch;
            for (std::int64_t j = first; j < last; ++j) {
                const std::int64_t stop_row = (j + 1) * block < length ? (j + 1) * block : length;
                give_back_block(grad, ids, length, kept, inverse, to, {j * block, stop_row}, {start, stop}, sums,
                                totals.get(), tokens.get() + j * width, past_caches);
            }
        }
        if (to.pos != nullptr && begin < end)
            write_row(to.pos + begin * width, totals.get() + begin * width, (end - begin) * width, false);
        stream_fence();
    }
    if (to.x != nullptr) clear_unnamed(inverse, batch, kept, width, to.x);
    if (to.token == nullptr) return;
    for (std::int64_t j = 1; j < blocks; ++j) add_row(tokens.get(), tokens.get() + j * width, width);
    if (blocks > 0)
        write_row(to.token, tokens.get(), width, false);
    else
        write_zeros(to.token, width, false);
}

}  // namespace

std::int64_t restore_patches_forward(const void* x, std::int64_t sample_stride, std::int64_t row_stride, DType x_dtype,
                                     std::int64_t batch, std::int64_t kept, std::int64_t width, const std::int64_t* ids,
                                     std::int64_t length, const void* token, const void* pos, void* out, DType out_dtype,
                                     int threads) {
    const std::int64_t outside = first_outside(ids, batch * length, length);
    if (outside >= 0) return outside;
    const PatchRows rows{x, sample_stride, row_stride, width, x_dtype};
    with_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using O = decltype(out_type);
        restore<decltype(x_type), O>(rows, batch, kept, ids, length, static_cast<const O*>(token),
                                     static_cast<const O*>(pos), static_cast<O*>(out), threads);
    });
    return -1;
}

std::int64_t restore_patches_backward(const void* grad, std::int64_t sample_stride, std::int64_t row_stride, DType out_dtype,
                                      std::int64_t batch, std::int64_t length, std::int64_t width, const std::int64_t* ids,
                                      std::int64_t kept, void* grad_x, DType x_dtype, void* grad_token, void* grad_pos,
                                      int threads) {
    const std::int64_t outside = first_outside(ids, batch * length, length);
    if (outside >= 0) return outside;
    const PatchRows rows{grad, sample_stride, row_stride, width, out_dtype};
    with_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using X = decltype(x_type);
        using O = decltype(out_type);
        const Gradients<X, O> to{static_cast<X*>(grad_x), static_cast<O*>(grad_token), static_cast<O*>(grad_pos)};
        give_back(rows, batch, ids, length, kept, to, threads);
    });
    return -1;
}

}  // namespace fastssl::FASTSSL_ISA
