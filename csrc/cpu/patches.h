// What take_patches and restore_patches share: rows of a batch of samples, addressed by indices.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "dtype.h"
#include "stream.h"

namespace fastssl {

// Rows of `width` contiguous elements of `dtype`; sample b's row i begins at b * sample_stride + i * row_stride elements.
struct PatchRows {
    const void* data;
    std::int64_t sample_stride, row_stride, width;
    DType dtype;
};

}  // namespace fastssl

namespace fastssl::FASTSSL_ISA {

constexpr std::int64_t kSummedSamples = 16;  // summed by themselves before they join the total: rounding stays small

template <class T>
using Accumulator = decltype(widen(T{}));

// Calls f with values of the C++ types of a tensor and of the result of adding others to it: the same, or float.
template <class F>
inline void with_types(DType in, DType out, F f) {
    with_type(in, [&](auto x) {
        if (in == out)
            f(x, x);
        else if (out == DType::f32 && sizeof(x) == 2)
            f(x, float{});
    });
}

template <class T>
inline const T* row_of(const PatchRows& rows, std::int64_t sample, std::int64_t i) {
    return static_cast<const T*>(rows.data) + sample * rows.sample_stride + i * rows.row_stride;
}

// Asks for a row that is read after the one at hand: rows of different samples lie too far apart to be foreseen.
template <class T>
inline void prefetch(const T* row, std::int64_t count) {
    const char* bytes = reinterpret_cast<const char*>(row);
    const std::int64_t size = count * static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = 0; i < size && i < 4096; i += 64) __builtin_prefetch(bytes + i);
}

// The position of the first index outside [0, limit), or -1.
inline std::int64_t first_outside(const std::int64_t* ids, std::int64_t count, std::int64_t limit) {
    const auto bound = static_cast<std::uint64_t>(limit);
    std::uint64_t any = 0;
    for (std::int64_t i = 0; i < count; ++i) any |= static_cast<std::uint64_t>(static_cast<std::uint64_t>(ids[i]) >= bound);
    if (any == 0) return -1;
    std::int64_t i = 0;
    while (static_cast<std::uint64_t>(ids[i]) < bound) ++i;
    return i;
}

// Which rows an index names, for every index below `targets`: first(b, target), then next(b, row) until -1, ascending.
class Inverse {
public:
    Inverse(const std::int64_t* ids, std::int64_t batch, std::int64_t rows, std::int64_t targets, int threads)
        : rows_(rows), targets_(targets), first_(batch * targets), next_(batch * rows) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t b = 0; b < batch; ++b) {
            std::int32_t* first = first_.get() + b * targets;
            for (std::int64_t i = 0; i < targets; ++i) first[i] = -1;
            for (std::int64_t row = rows - 1; row >= 0; --row) {
                const std::int64_t target = ids[b * rows + row];
                if (target >= targets) continue;
                next_.get()[b * rows + row] = first[target];
                first[target] = static_cast<std::int32_t>(row);
            }
        }
    }
    std::int64_t first(std::int64_t b, std::int64_t target) const { return first_.get()[b * targets_ + target]; }
    std::int64_t next(std::int64_t b, std::int64_t row) const { return next_.get()[b * rows_ + row]; }

private:
    std::int64_t rows_, targets_;
    Buffer<std::int32_t> first_, next_;
};

template <class A, class T>
inline void add_row(A* total, const T* row, std::int64_t count) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) total[i] += widen(row[i]);
}

template <class A, class T>
inline void add_row_to_both(A* total, A* other, const T* row, std::int64_t count) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
        const A value = widen(row[i]);
        total[i] += value;
        other[i] += value;
    }
}

template <class A>
inline void clear(A* row, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) row[i] = A(0);
}

// out = the sum of the rows of sample b that the inverse names for one target, of which `first` is the first; zero
// where that is -1. `scratch` holds a row where there are several.
template <class O, class T, class A>
inline void write_sum(O* out, const PatchRows& rows, const Inverse& inverse, std::int64_t b, std::int64_t first, A* scratch,
                      bool past_caches) {
    if (first < 0) {
        write_zeros(out, rows.width, past_caches);
        return;
    }
    const T* row = row_of<T>(rows, b, first);
    std::int64_t next = inverse.next(b, first);
    if (next < 0) {
        write_row(out, rows.width, past_caches, [row](std::int64_t i) { return widen(row[i]); });
        return;
    }
    clear(scratch, rows.width);
    add_row(scratch, row, rows.width);
    for (; next >= 0; next = inverse.next(b, next)) add_row(scratch, row_of<T>(rows, b, next), rows.width);
    write_row(out, rows.width, past_caches, [scratch](std::int64_t i) { return scratch[i]; });
}

}  // namespace fastssl::FASTSSL_ISA
