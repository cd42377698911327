// Exponential moving average over lists of tensors: t += (1 - m) (s - t), optionally with a copy of t in a lower precision.
//
// Computed in float (double where the target is f64) whatever the types stored; integer tensors are copied. All
// tensors are one range of elements that the threads share evenly, so one large tensor and many small ones cost the
// same. Bytes moved: source and target read once, target and copy written once. No temporaries beyond 4 KB a thread.
// Reference and tests: fastssl/ops/ema_update.py, tests/ops/test_ema_update.py.
#include "ema_update.h"

#include "simd.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr std::int64_t kChunk = 1024;  // elements whose widened source stays in the nearest cache

template <class C, class T>
void copy(C* out, const T* in, std::int64_t count) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) narrow(widen(in[i]), out[i]);
}

// As torch.lerp: from the end that is nearer.
template <bool NearTarget, class T, class S>
void blend(T* target, const S* source, std::int64_t count, decltype(widen(T{})) momentum, decltype(widen(T{})) rate) {
    using A = decltype(widen(T{}));  // computed in
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
        const A old = widen(target[i]), fresh = static_cast<A>(widen(source[i]));
        narrow(NearTarget ? old + rate * (fresh - old) : fresh - momentum * (fresh - old), target[i]);
    }
}

// A momentum of 1 keeps the target and one of 0 copies the source, whatever the other holds: infinity and NaN too.
template <class T, class S>
void update(T* target, const S* source, std::int64_t count, double momentum) {
    using A = decltype(widen(T{}));
    const A m = static_cast<A>(momentum), rate = static_cast<A>(1.0 - momentum);
    if (momentum == 1.0) return;
    if (momentum == 0.0)
        copy(target, source, count);
    else if (momentum > 0.5)
        blend<true>(target, source, count, m, rate);
    else
        blend<false>(target, source, count, m, rate);
}

// Elements [begin, end) of one tensor.
void update_range(const EmaTensor& tensor, std::int64_t begin, std::int64_t end, double momentum) {
    if (tensor.target_dtype == DType::bytes) {
        std::memcpy(static_cast<char*>(tensor.target) + begin, static_cast<const char*>(tensor.source) + begin,
                    static_cast<std::size_t>(end - begin));
        return;
    }
    with_type(tensor.target_dtype, [&](auto target_type) {
        using T = decltype(target_type);
        T* target = static_cast<T*>(tensor.target);
        for (std::int64_t i = begin; i < end; i += kChunk) {
            const std::int64_t count = end - i < kChunk ? end - i : kChunk;
            with_type(tensor.source_dtype, [&](auto source_type) {
                update(target + i, static_cast<const decltype(source_type)*>(tensor.source) + i, count, momentum);
            });
            with_type(tensor.copy_dtype, [&](auto copy_type) {
                copy(static_cast<decltype(copy_type)*>(tensor.copy) + i, target + i, count);
            });
        }
    });
}

}  // namespace

void ema_update(const EmaTensor* tensors, std::int64_t count, double momentum, int threads) {
    std::int64_t total = 0;
    for (std::int64_t t = 0; t < count; ++t) total += tensors[t].count;
    const int shares = for_elements(threads, total);
#pragma omp parallel for num_threads(shares) schedule(static, 1)
    for (std::int64_t share = 0; share < shares; ++share) {
        // whole cache lines to each thread
        const std::int64_t first = total / 64 * share / shares * 64;
        const std::int64_t last = share + 1 == shares ? total : total / 64 * (share + 1) / shares * 64;
        std::int64_t start = 0;  // of tensor t in the range of all elements
        for (std::int64_t t = 0; t < count && start < last; start += tensors[t].count, ++t) {
            const std::int64_t begin = first > start ? first - start : 0;
            const std::int64_t end = last - start < tensors[t].count ? last - start : tensors[t].count;
            if (begin < end) update_range(tensors[t], begin, end, momentum);
        }
    }
}

}  // namespace fastssl::FASTSSL_ISA
