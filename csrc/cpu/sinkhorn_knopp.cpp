// Sinkhorn-Knopp assignment of samples (rows) to prototypes (columns), as SwAV does (arXiv:2006.09882, section 3.1).
//
//   E_bk = exp(scores_bk / temp), u = 1
//   each iteration: v_k = rows / (columns sum_b E_bk u_b), u_b = 1 / sum_k E_bk v_k
//   out_bk = E_bk u_b v_k
//
// The first v absorbs any factor of a column, so logits of each column's own size are subtracted before its
// exponentials: those of row 0, which spares a sweep to find the maxima. Should a column lie so far above them that its
// exponentials nearly overflow, all is done again with its maximum (`column_maxima`). Should a row lie so far under them
// that its exponentials nearly vanish, all is done again with each row's own maximum subtracted too, and with a u that
// restores it (`shift_rows`).
//
// Memory is always read along its rows. A row stays in the cache for both normalisations: its sum of E v gives its u,
// and with that it is added to the columns' sums of the next iteration, or written as the result in the last. The
// exponentials are taken once and kept in `out`. The columns' sums are kept by group of rows and added in order, in
// double. Bytes moved: scores read once, out written twice and read once an iteration. Extra memory: u, v, what is
// subtracted, and an eighth of the result at most for the groups. The same bits for any number of threads. Reference and tests: fastssl/ops/sinkhorn_knopp.py, tests/ops/test_sinkhorn_knopp.py.
#include "sinkhorn_knopp.h"

#include "buffer.h"
#include "pages.h"
#include "simd.h"
#include "stream.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr std::int64_t kChunk = 512;    // columns that are looked at together: a few kilobytes
constexpr std::int64_t kFewestRows = 8;  // of a group; what one keeps is as long as a row
constexpr std::int64_t kMostGroups = 64;

// A row's sum of E v, which is 1 on average, under which its exponentials lose digits; and a column's sum of E u above
// which what u makes of it later might overflow.
constexpr double kVanishing = 1e-12, kHeavy = 1e18;

template <class T>
constexpr double kSmallestNormal = sizeof(T) == 4 ? 1.1754943508222875e-38 : 2.2250738585072014e-308;

template <class T>
struct Problem {
    const void* scores;
    DType dtype;
    std::int64_t rows, columns;
    T scale;  // 1 / temp
    T* out;
    int threads;

    std::int64_t group() const {
        const std::int64_t rows_each = (rows + kMostGroups - 1) / kMostGroups;
        return rows_each < kFewestRows ? kFewestRows : rows_each;
    }
    std::int64_t groups() const { return (rows + group() - 1) / group(); }
    // What the columns of the result add up to.
    double mean() const { return static_cast<double>(rows) / static_cast<double>(columns); }
    std::int64_t padded() const { return (columns + kWidth<T> - 1) / kWidth<T> * kWidth<T>; }
    // What u and v make of an exponential shall be a normal number: with others processors take a hundred cycles.
    T least() const { return static_cast<T>(4 * kSmallestNormal<T> * static_cast<double>(rows * columns)); }
};

// The scaling vectors, and what they are made of.
template <class T>
struct Scaling {
    explicit Scaling(const Problem<T>& p)
        : u(p.rows), v(p.padded()), row_shifts(p.rows), column_shifts(p.padded()), parts(p.groups() * p.padded()) {
        for (std::int64_t b = 0; b < p.rows; ++b) u.get()[b] = T(1), row_shifts.get()[b] = T(0);
    }
    Buffer<T> u, v;
    Buffer<T> row_shifts, column_shifts;  // subtracted from the logits
    Buffer<T> parts;                      // [group][column]
};

// Calls visit(row, what its group keeps, whether it is the first of the group) for every row, in order in each group.
template <class T, class Visit>
void for_each_row(const Problem<T>& p, Scaling<T>& scaling, Visit visit) {
    const std::int64_t groups = p.groups();
#pragma omp parallel for num_threads(p.threads) schedule(static, 1)
    for (int share = 0; share < p.threads; ++share)
        for (std::int64_t g = groups * share / p.threads; g < groups * (share + 1) / p.threads; ++g)
            for (std::int64_t b = g * p.group(); b < (g + 1) * p.group() && b < p.rows; ++b)
                visit(b, scaling.parts.get() + g * p.padded(), b == g * p.group());
}

// Calls visit(first column, count) for the chunks of a row.
template <class T, class Visit>
void for_each_chunk(const Problem<T>& p, Visit visit) {
    for (std::int64_t begin = 0; begin < p.columns; begin += kChunk)
        visit(begin, p.columns - begin < kChunk ? p.columns - begin : kChunk);
}

// Fills whole vectors with a chunk's logits and, after its end, zeros.
template <class T>
void read_logits(const Problem<T>& p, std::int64_t b, std::int64_t begin, std::int64_t count, T* logits) {
    const T scale = p.scale;
    with_type(p.dtype, [=](auto type) {
        const auto* in = static_cast<const decltype(type)*>(p.scores) + b * p.columns + begin;
#pragma GCC ivdep
        for (std::int64_t k = 0; k < count; ++k) logits[k] = static_cast<T>(widen(in[k])) * scale;
    });
    for (std::int64_t k = count; k % kWidth<T> != 0; ++k) logits[k] = T(0);
}

// The largest logit of each column, to be subtracted.
template <class T>
void column_maxima(const Problem<T>& p, Scaling<T>& scaling) {
    for_each_row(p, scaling, [&](std::int64_t b, T* most, bool is_first) {
        for_each_chunk(p, [&](std::int64_t begin, std::int64_t count) {
            alignas(64) T logits[kChunk];
            read_logits(p, b, begin, count, logits);
            for (std::int64_t k = 0; k < count; k += kWidth<T>) {
                const Vec<T> x = load<T>(logits + k);
                store<T>(most + begin + k, is_first ? x : vmax(load<T>(most + begin + k), x));
            }
        });
    });
    T* maxima = scaling.column_shifts.get();
    std::memcpy(maxima, scaling.parts.get(), static_cast<std::size_t>(p.padded()) * sizeof(T));
    for (std::int64_t g = 1; g < p.groups(); ++g)
        for (std::int64_t k = 0; k < p.padded(); k += kWidth<T>)
            store<T>(maxima + k, vmax(load<T>(maxima + k), load<T>(scaling.parts.get() + g * p.padded() + k)));
}

// sums = weight * row, or is added to it; whole vectors.
template <class T>
void add_row(T* sums, const T* row, T weight, bool is_first, std::int64_t count) {
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
        const Vec<T> weighted = load<T>(row + k) * weight;
        store<T>(sums + k, is_first ? weighted : load<T>(sums + k) + weighted);
    }
}

// The exponentials, into `out`, and the columns' sums of E u.
template <class T>
void take_exponentials(const Problem<T>& p, Scaling<T>& scaling, bool past_caches) {
    const T least = p.least();
    for_each_row(p, scaling, [&](std::int64_t b, T* sums, bool is_first) {
        const T shift = scaling.row_shifts.get()[b], u = scaling.u.get()[b];
        for_each_chunk(p, [&](std::int64_t begin, std::int64_t count) {
            alignas(64) T row[kChunk];
            read_logits(p, b, begin, count, row);
            for (std::int64_t k = 0; k < count; k += kWidth<T>) {
                const Vec<T> e = exp<T>(load<T>(row + k) - load<T>(scaling.column_shifts.get() + begin + k) - shift);
                store<T>(row + k, e < least ? Vec<T>{} : e);
            }
            add_row(sums + begin, row, u, is_first, count);
            write_row(p.out + b * p.columns + begin, row, count, past_caches);
        });
        stream_fence();
    });
}

// v = mean / the columns' sums.
template <class T>
void normalise_columns(const Problem<T>& p, Scaling<T>& scaling) {
    const std::int64_t chunks = (p.columns + kChunk - 1) / kChunk;
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        const std::int64_t begin = chunk * kChunk, left = p.columns - begin, count = left < kChunk ? left : kChunk;
        double totals[kChunk] = {};
        for (std::int64_t g = 0; g < p.groups(); ++g) {
            const T* sums = scaling.parts.get() + g * p.padded() + begin;
#pragma GCC ivdep
            for (std::int64_t k = 0; k < count; ++k) totals[k] += static_cast<double>(sums[k]);
        }
        T* v = scaling.v.get() + begin;
#pragma GCC ivdep
        for (std::int64_t k = 0; k < count; ++k) v[k] = static_cast<T>(p.mean() / totals[k]);
        for (std::int64_t k = count; k % kWidth<T> != 0; ++k) v[k] = T(0);
    }
}

// A chunk of E with zeros up to a whole vector: where it lies, or a copy in `work`.
template <class T>
const T* chunk_of(const Problem<T>& p, std::int64_t b, std::int64_t begin, std::int64_t count, T* work) {
    const T* row = p.out + b * p.columns + begin;
    if (count % kWidth<T> == 0) return row;
    std::memcpy(work, row, static_cast<std::size_t>(count) * sizeof(T));
    for (std::int64_t k = count; k % kWidth<T> != 0; ++k) work[k] = T(0);
    return work;
}

template <class T>
T dot(const T* row, const T* v, std::int64_t count) {
    constexpr std::int64_t kSums = 4;  // side by side: one alone would wait for each addition
    Vec<T> sums[kSums] = {};
    std::int64_t k = 0;
    for (; k + kSums * kWidth<T> <= count; k += kSums * kWidth<T>)
        for (std::int64_t i = 0; i < kSums; ++i) sums[i] += load<T>(row + k + i * kWidth<T>) * load<T>(v + k + i * kWidth<T>);
    for (; k < count; k += kWidth<T>) sums[0] += load<T>(row + k) * load<T>(v + k);
    return sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// u = 1 / the rows' sums of E v, and then, for each row, the columns' sums of E u for the next iteration or, in the last,
// the result.
template <class T>
void normalise_rows(const Problem<T>& p, Scaling<T>& scaling, bool is_last) {
    const T* v = scaling.v.get();
    for_each_row(p, scaling, [&](std::int64_t b, T* sums, bool is_first) {
        alignas(64) T work[kChunk];
        double total = 0;
        for_each_chunk(p, [&](std::int64_t begin, std::int64_t count) {
            total += static_cast<double>(dot(chunk_of(p, b, begin, count, work), v + begin, count));
        });
        const T u = scaling.u.get()[b] = static_cast<T>(1.0 / total);
        for_each_chunk(p, [&](std::int64_t begin, std::int64_t count) {
            if (!is_last) return add_row(sums + begin, chunk_of(p, b, begin, count, work), u, is_first, count);
            T* out = p.out + b * p.columns + begin;
#pragma GCC ivdep
            for (std::int64_t k = 0; k < count; ++k) out[k] = out[k] * v[begin + k] * u;
        });
    });
}

// After normalise_columns: v is small where a column's sum is large, and NaN where that is.
template <class T>
bool has_heavy_column(const Problem<T>& p, const Scaling<T>& scaling) {
    const T least = static_cast<T>(p.mean() / kHeavy);
    for (std::int64_t k = 0; k < p.columns; ++k)
        if (!(scaling.v.get()[k] >= least)) return true;
    return false;
}

template <class T>
bool has_vanishing_row(const Problem<T>& p, const Scaling<T>& scaling) {
    for (std::int64_t b = 0; b < p.rows; ++b)
        if (static_cast<double>(scaling.u.get()[b]) * kVanishing > 1) return true;
    return false;
}

// Subtracts from each row what keeps its largest exponential at 1, and starts u with what undoes it.
template <class T>
void shift_rows(const Problem<T>& p, Scaling<T>& scaling) {
    for_each_row(p, scaling, [&](std::int64_t b, T*, bool) {
        T most = -kInfinity<T>;
        for_each_chunk(p, [&](std::int64_t begin, std::int64_t count) {
            alignas(64) T logits[kChunk];
            read_logits(p, b, begin, count, logits);
            for (std::int64_t k = 0; k < count; ++k) {
                const T under = logits[k] - scaling.column_shifts.get()[begin + k];
                if (under > most) most = under;
            }
        });
        scaling.row_shifts.get()[b] = most;
        scaling.u.get()[b] = exp<T>(broadcast<T>(most))[0];
    });
}

template <class T>
void assign(const Problem<T>& p, std::int64_t iterations) {
    const std::int64_t bytes = p.rows * p.columns * static_cast<std::int64_t>(sizeof(T));
    const bool past_caches = back_for_streaming(p.out, bytes, p.threads);
    Scaling<T> scaling(p);
    for_each_chunk(p, [&](std::int64_t begin, std::int64_t count) {
        read_logits(p, 0, begin, count, scaling.column_shifts.get() + begin);
    });
    const auto start = [&] {
        take_exponentials(p, scaling, past_caches);
        normalise_columns(p, scaling);
    };
    start();
    if (has_heavy_column(p, scaling)) {
        column_maxima(p, scaling);
        start();
    }
    normalise_rows(p, scaling, iterations == 1);
    if (has_vanishing_row(p, scaling)) {
        shift_rows(p, scaling);
        start();
        normalise_rows(p, scaling, iterations == 1);
    }
    for (std::int64_t i = 1; i < iterations; ++i) {
        normalise_columns(p, scaling);
        normalise_rows(p, scaling, i + 1 == iterations);
    }
}

}  // namespace

void sinkhorn_knopp(const void* scores, std::int64_t rows, std::int64_t columns, DType dtype, double temp,
                    std::int64_t iterations, void* out, int threads) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        assign(Problem<T>{scores, dtype, rows, columns, static_cast<T>(1.0 / temp), static_cast<T*>(out),
                          for_elements(threads, rows * columns)},
               iterations);
    };
    if (dtype == DType::f64)
        run(double{});
    else
        run(float{});
}

}  // namespace fastssl::FASTSSL_ISA
