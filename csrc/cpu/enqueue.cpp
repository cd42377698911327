// Writes keys into a queue of rows that is used in a circle (MoCo, He et al. 2019, arXiv:1911.05722, algorithm 1).
//
//   queue[(cursor + i) mod length] = key_i, or key_i / max(|key_i|, kEpsilon), for the last `length` of the keys
//
// Computed in float (double for keys of f64); squares are summed in lanes, their root taken in double. Bytes moved: keys
// read once from memory, their rows of the queue written once. No memory beyond 4 KB a thread.
// Reference and tests: fastssl/ops/enqueue.py, tests/ops/test_enqueue.py.
#include "enqueue.h"

#include <math.h>

#include "simd.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr std::int64_t kChunk = 512;  // elements widened at a time
constexpr double kEpsilon = 1e-12;   // torch.nn.functional.normalize's

template <class A, class S>
double inverse_length(const S* key, std::int64_t columns) {
    alignas(64) A chunk[kChunk];
    Vec<A> squares = {};
    for (std::int64_t first = 0; first < columns; first += kChunk) {
        const std::int64_t count = columns - first < kChunk ? columns - first : kChunk;
        const std::int64_t padded = (count + kWidth<A> - 1) / kWidth<A> * kWidth<A>;
#pragma GCC ivdep
        for (std::int64_t k = 0; k < count; ++k) chunk[k] = widen(key[first + k]);
        for (std::int64_t k = count; k < padded; ++k) chunk[k] = A(0);
        for (std::int64_t k = 0; k < padded; k += kWidth<A>) squares += load<A>(chunk + k) * load<A>(chunk + k);
    }
    const double length = ::sqrt(static_cast<double>(sum<A>(squares)));
    return 1.0 / (length < kEpsilon ? kEpsilon : length);
}

template <class T, class S>
void write_row(const S* key, std::int64_t columns, bool normalize, T* out) {
    using A = decltype(widen(S{}));
    const A scale = normalize ? static_cast<A>(inverse_length<A>(key, columns)) : A(1);
#pragma GCC ivdep
    for (std::int64_t k = 0; k < columns; ++k) narrow(static_cast<A>(widen(key[k])) * scale, out[k]);
}

}  // namespace

void enqueue(void* queue, std::int64_t length, std::int64_t stride, DType queue_dtype, std::int64_t* cursor,
             const void* keys, std::int64_t count, std::int64_t columns, DType keys_dtype, bool normalize, int threads) {
    const std::int64_t start = (*cursor % length + length) % length;
    const std::int64_t skipped = count > length ? count - length : 0;
    with_type(queue_dtype, [&](auto queue_type) {
        with_type(keys_dtype, [&](auto keys_type) {
            auto* out = static_cast<decltype(queue_type)*>(queue);
            const auto* in = static_cast<const decltype(keys_type)*>(keys);
#pragma omp parallel for num_threads(for_elements(threads, (count - skipped) * columns)) schedule(static)
            for (std::int64_t i = skipped; i < count; ++i)
                write_row(in + i * columns, columns, normalize, out + (start + i) % length * stride);
        });
    });
    *cursor = (start + count) % length;
}

}  // namespace fastssl::FASTSSL_ISA
