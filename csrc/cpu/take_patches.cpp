// The patches that a masked autoencoder's encoder sees (He et al. 2021, arXiv:2111.06377), with their position embedding.
//
//   out[b, k] = x[b, ids[b, k]] + pos[ids[b, k]]
//   grad_x[b, l] = sum of grad[b, k] over the k with ids[b, k] = l      grad_pos[l] = sum of grad_x[b, l] over b
//
// Bytes moved: forward, the rows taken read once and written once; backward, `grad` read once and `grad_x` written once, zeros
// and sums in the same pass by the inverse of `ids`. Sums are in float (double for f64): over an index that is given
// more than once in the order of k, over the batch by groups of kSummedSamples. Threads share the rows of the output.
// Reference and tests: fastssl/ops/take_patches.py, tests/ops/test_take_patches.py.
#include "take_patches.h"

#include "pages.h"

namespace fastssl::FASTSSL_ISA {
namespace {

template <class X, class O>
void take(const PatchRows& x, std::int64_t batch, const std::int64_t* ids, std::int64_t kept, const O* pos, O* out,
          int threads) {
    const bool past_caches = back_for_streaming(out, batch * kept * x.width * static_cast<std::int64_t>(sizeof(O)), threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
        for (std::int64_t i = batch * kept * share / threads; i < batch * kept * (share + 1) / threads; ++i) {
            const O* place = pos == nullptr ? nullptr : pos + ids[i] * x.width;
            write_placed(out + i * x.width, row_of<X>(x, i / kept, ids[i]), place, x.width, past_caches);
        }
        stream_fence();
    }
}

template <class X, class O>
void give_back(const PatchRows& grad, std::int64_t batch, const std::int64_t* ids, std::int64_t kept, std::int64_t length,
               X* grad_x, O* grad_pos, int threads) {
    using A = Accumulator<O>;
    const std::int64_t width = grad.width;
    const Inverse inverse(ids, batch, kept, length, threads);
    const Buffer<A> scratch(2 * width * threads), totals(grad_pos == nullptr ? 1 : length * width);
    const bool past_caches =
        grad_x != nullptr &&
        back_for_streaming(grad_x, batch * length * width * static_cast<std::int64_t>(sizeof(X)), threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
        A *sum = scratch.get() + 2 * width * share, *group = sum + width;
        const std::int64_t begin = length * share / threads, end = length * (share + 1) / threads;
        if (grad_pos != nullptr) clear(totals.get() + begin * width, (end - begin) * width);
        for (std::int64_t start = 0; start < batch; start += kSummedSamples) {
            const std::int64_t stop = start + kSummedSamples < batch ? start + kSummedSamples : batch;
            for (std::int64_t l = begin; l < end; ++l) {
                if (grad_pos != nullptr) clear(group, width);
                for (std::int64_t b = start; b < stop; ++b) {
                    const std::int64_t first = inverse.first(b, l);
                    if (grad_x != nullptr)
                        write_sum<X, O>(grad_x + (b * length + l) * width, grad, inverse, b, first, sum, past_caches);
                    if (grad_pos != nullptr)
                        for (std::int64_t k = first; k >= 0; k = inverse.next(b, k))
                            add_row(group, row_of<O>(grad, b, k), width);
                }
                if (grad_pos != nullptr) add_row(totals.get() + l * width, group, width);
            }
        }
        if (grad_pos != nullptr)
            write_row(grad_pos + begin * width, totals.get() + begin * width, (end - begin) * width, false);
        stream_fence();
    }
}

}  // namespace

std::int64_t take_patches_forward(const void* x, std::int64_t sample_stride, std::int64_t row_stride, DType x_dtype,
                                  std::int64_t batch, std::int64_t length, std::int64_t width, const std::int64_t* ids,
                                  std::int64_t kept, const void* pos, void* out, DType out_dtype, int threads) {
    const std::int64_t outside = first_outside(ids, batch * kept, length);
    if (outside >= 0) return outside;
    const PatchRows rows{x, sample_stride, row_stride, width, x_dtype};
    with_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using O = decltype(out_type);
        take<decltype(x_type), O>(rows, batch, ids, kept, static_cast<const O*>(pos), static_cast<O*>(out), threads);
    });
    return -1;
}

std::int64_t take_patches_backward(const void* grad, std::int64_t sample_stride, std::int64_t row_stride, DType out_dtype,
                                   std::int64_t batch, std::int64_t kept, std::int64_t width, const std::int64_t* ids,
                                   std::int64_t length, void* grad_x, DType x_dtype, void* grad_pos, int threads) {
    const std::int64_t outside = first_outside(ids, batch * kept, length);
    if (outside >= 0) return outside;
    const PatchRows rows{grad, sample_stride, row_stride, width, out_dtype};
    with_types(x_dtype, out_dtype, [&](auto x_type, auto out_type) {
        using X = decltype(x_type);
        using O = decltype(out_type);
        give_back(rows, batch, ids, kept, length, static_cast<X*>(grad_x), static_cast<O*>(grad_pos), threads);
    });
    return -1;
}

}  // namespace fastssl::FASTSSL_ISA
