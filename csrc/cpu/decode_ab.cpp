// The annealed mean of quantised chroma (Zhang et al. 2016, arXiv:1603.08511, eq. 5).
//
//   ab = sum_q bins_q softmax(logits / T)_q
//
// Pixels are the lanes. A block of kColumns vectors of pixels passes twice over its logits, the second time from the
// second-level cache: for the maximum, then for the sums; the softmax is never stored. One exponential a logit is what
// it costs. Accumulated in float (double for f64). NaN logits give NaN.
// Reference and tests: fastssl/ops/decode_ab.py, tests/ops/test_decode_ab.py.
#include "decode_ab.h"

#include "color.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr int kColumns = 4;

// kColumns vectors of pixels, of which `count` pixels exist.
template <class T, class S>
void annealed_mean(const S* logits, const T* bins, std::int64_t plane, std::int64_t bin_count, T scale,
                   std::int64_t count, T* ab) {
    constexpr int width = kWidth<T>;
    Vec<T> highest[kColumns], total[kColumns] = {}, a[kColumns] = {}, b[kColumns] = {};
    for (int v = 0; v < kColumns; ++v) highest[v] = broadcast<T>(T(-__builtin_inf()));
    for (std::int64_t q = 0; q < bin_count; ++q)
        for (int v = 0; v < kColumns; ++v)
            highest[v] = vmax(highest[v], load_some<T>(logits + q * plane + v * width, count - v * width));
    for (std::int64_t q = 0; q < bin_count; ++q)
        for (int v = 0; v < kColumns; ++v) {
            const Vec<T> logit = load_some<T>(logits + q * plane + v * width, count - v * width);
            const Vec<T> e = exp<T>((logit - highest[v]) * scale);
            total[v] += e;
            a[v] += e * bins[q];
            b[v] += e * bins[bin_count + q];
        }
    for (int v = 0; v < kColumns; ++v) {
        store_some<T>(ab + v * width, a[v] / total[v], count - v * width);
        store_some<T>(ab + plane + v * width, b[v] / total[v], count - v * width);
    }
}

}  // namespace

void decode_ab(const void* logits, const void* bins, std::int64_t images, std::int64_t plane, std::int64_t count,
               DType dtype, double temperature, void* ab, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        for_each_chunk(images, plane, threads, [&](std::int64_t image, std::int64_t first, std::int64_t pixels) {
            for (std::int64_t i = 0; i < pixels; i += kColumns * kWidth<T>)
                annealed_mean<T>(static_cast<const S*>(logits) + image * count * plane + first + i,
                                 static_cast<const T*>(bins), plane, count, static_cast<T>(1 / temperature), pixels - i,
                                 static_cast<T*>(ab) + image * 2 * plane + first + i);
        });
    });
}

}  // namespace fastssl::FASTSSL_ISA
