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
        if (in == out) f(x, x);
        if constexpr (sizeof(x) == 2)
            if (out == DType::f32) f(x, float{});
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
        : rows_(counted(rows)), targets_(targets), first_(batch * targets), next_(batch * rows) {
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
    static std::int64_t counted(std::int64_t rows) {
        constexpr std::int64_t most = 0x7fffffff;
        if (rows > most) throw_too_many("a gradient on the CPU takes at most 2^31 - 1 indices a sample", rows);
        return rows;
    }

    std::int64_t rows_, targets_;
    Buffer<std::int32_t> first_, next_;
};

// The loops over the elements of rows stand here once each, whoever calls them: they are what takes time to compile.
template <class A, class T>
[[gnu::noinline]] void add_row(A* total, const T* row, std::int64_t count) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) total[i] += widen(row[i]);
}

template <class A, class T>
[[gnu::noinline]] void add_row_to_both(A* total, A* other, const T* row, std::int64_t count) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
        const A value = widen(row[i]);
        total[i] += value;
        other[i] += value;
    }
}

template <class A, class T>
[[gnu::noinline]] void widen_row(A* out, const T* row, std::int64_t count) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) out[i] = widen(row[i]);
}

template <class A, class X, class Y>
[[gnu::noinline]] void add_rows(A* sum, const X* x, const Y* y, std::int64_t count) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) sum[i] = widen(x[i]) + widen(y[i]);
}

constexpr std::int64_t kPiece = 512;  // elements of a row that are computed in the cache before they are written

// out = row, rounded to O.
template <class O, class X>
inline void copy_row(O* out, const X* row, std::int64_t count, bool past_caches) {
    if constexpr (sizeof(O) == sizeof(X)) {  // the same type, for bf16 and f16 never meet
        write_bytes(out, row, count * static_cast<std::int64_t>(sizeof(O)), past_caches);
    } else if constexpr (sizeof(O) < sizeof(X)) {
        write_row(out, row, count, past_caches);
    } else {
        alignas(64) O piece[kPiece];
        for (std::int64_t start = 0; start < count; start += kPiece) {
            const std::int64_t size = count - start < kPiece ? count - start : kPiece;
            widen_row(piece, row + start, size);
            write_row(out + start, piece, size, past_caches);
        }
    }
}

// out = row + place, added in the accumulator's type; out = row where `place` is null.
template <class O, class X>
inline void write_placed(O* out, const X* row, const O* place, std::int64_t count, bool past_caches) {
    using A = Accumulator<O>;
    if (place == nullptr) {
        copy_row(out, row, count, past_caches);
        return;
    }
    alignas(64) A piece[kPiece];
    for (std::int64_t start = 0; start < count; start += kPiece) {
        const std::int64_t size = count - start < kPiece ? count - start : kPiece;
        add_rows(piece, row + start, place + start, size);
        write_row(out + start, piece, size, past_caches);
    }
}

template <class A>
inline void clear(A* row, std::int64_t count) {
    if (count > 0) std::memset(row, 0, static_cast<std::size_t>(count) * sizeof(A));
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
        copy_row(out, row, rows.width, past_caches);
        return;
    }
    clear(scratch, rows.width);
    add_row(scratch, row, rows.width);
    for (; next >= 0; next = inverse.next(b, next)) add_row(scratch, row_of<T>(rows, b, next), rows.width);
    write_row(out, scratch, rows.width, past_caches);
}

}  // namespace fastssl::FASTSSL_ISA
