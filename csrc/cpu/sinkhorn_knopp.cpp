// Sinkhorn-Knopp assignment of samples (rows) to prototypes (columns), as SwAV does (arXiv:2006.09882, section 3.1).
//
//   E_bk = exp(scores_bk / temp), u = 1
//   each iteration: v_k = rows / (columns sum_b E_bk u_b), u_b = 1 / sum_k E_bk v_k
//   out_bk = E_bk u_b v_k
//
// The first v absorbs any factor of a column, so each column's own maximum is subtracted before its exponentials: the
// result is that of one maximum for all, without a sweep to find it, and no column can vanish. Should a row lie so far
// under all of these maxima that its exponentials nearly vanish, the first sweep is made again with each row's own
// maximum subtracted, and with a u that restores it (`row_shifts`).
//
// One sweep an iteration: a block of columns, with all its rows, stays in the cache for both normalisations; the sums
// of rows are kept by block and added in order, in double. The exponentials are taken once, in the first sweep, and
// stored in `out`, which a last sweep multiplies by u and v. Bytes moved: scores read once, out written twice and read
// once an iteration. Extra memory: a block a thread, u, v, and a number for each row and block. The same bits for any
// number of threads. Reference and tests: fastssl/ops/sinkhorn_knopp.py, tests/ops/test_sinkhorn_knopp.py.
#include "sinkhorn_knopp.h"

#include "buffer.h"
#include "pages.h"
#include "simd.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr std::int64_t kBlockElements = 65536;  // of a block of columns: a quarter of a megabyte of floats
constexpr std::int64_t kNarrowest = 64, kWidest = 512;  // columns; narrower ones would fetch a page for little
constexpr std::int64_t kGroup = 64;  // rows summed in one go: the error grows with kGroup + rows / kGroup

// A row's sum of E v, which is 1 on average, under which its exponentials lose digits.
constexpr double kVanishing = 1e-12;

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

    // Columns of a block: whole vectors of every instruction set, as many as fit.
    std::int64_t width() const {
        const std::int64_t fitting = kBlockElements / rows / 16 * 16;
        return fitting < kNarrowest ? kNarrowest : fitting > kWidest ? kWidest : fitting;
    }
    T mean() const { return static_cast<T>(static_cast<double>(rows) / static_cast<double>(columns)); }
    std::int64_t blocks() const { return (columns + width() - 1) / width(); }
};

// A block of columns in working memory: row b at data + b * stride, zeros from `count` to `stride`.
template <class T>
struct Block {
    T* data;
    std::int64_t rows, begin, count, stride;
};

// The scaling vectors, and what they are made of.
template <class T>
struct Scaling {
    explicit Scaling(const Problem<T>& p)
        : u(p.rows), v(p.blocks() * p.width()), shifts(p.rows), parts(p.blocks() * p.rows) {
        for (std::int64_t b = 0; b < p.rows; ++b) u.get()[b] = T(1), shifts.get()[b] = T(0);
    }
    Buffer<T> u, v;
    Buffer<T> shifts;  // subtracted from the logits of each row
    Buffer<T> parts;   // [block][row]
};

// Calls visit(block index, block) for every block of columns; the contents are undefined.
template <class T, class Visit>
void for_each_block(const Problem<T>& p, T* work, Visit visit) {
    const std::int64_t blocks = p.blocks(), width = p.width();
#pragma omp parallel for num_threads(p.threads) schedule(static, 1)
    for (int share = 0; share < p.threads; ++share)
        for (std::int64_t j = blocks * share / p.threads; j < blocks * (share + 1) / p.threads; ++j) {
            const std::int64_t left = p.columns - j * width, count = left < width ? left : width;
            visit(j, Block<T>{work + share * p.rows * width, p.rows, j * width, count, (count + 15) / 16 * 16});
        }
}

// Fills the block with the logits less their column's maximum.
template <class T>
void read_logits(const Problem<T>& p, const Block<T>& block) {
    T maxima[kWidest];
    with_type(p.dtype, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(p.scores) + block.begin;
        for (std::int64_t b = 0; b < block.rows; ++b) {
            T* row = block.data + b * block.stride;
#pragma GCC ivdep
            for (std::int64_t k = 0; k < block.count; ++k)
                row[k] = static_cast<T>(widen(in[b * p.columns + k])) * p.scale;
            for (std::int64_t k = block.count; k < block.stride; ++k) row[k] = T(0);
            for (std::int64_t k = 0; k < block.stride; k += kWidth<T>)
                store<T>(maxima + k, b == 0 ? load<T>(row + k) : vmax(load<T>(maxima + k), load<T>(row + k)));
        }
    });
    for (std::int64_t b = 0; b < block.rows; ++b)
        for (std::int64_t k = 0; k < block.stride; k += kWidth<T>) {
            T* x = block.data + b * block.stride + k;
            store<T>(x, load<T>(x) - load<T>(maxima + k));
        }
}

// exp(row - shift) in place, as 0 under `least`.
template <class T>
void exponentials(T* row, T shift, T least, const Block<T>& block) {
    for (std::int64_t k = 0; k < block.stride; k += kWidth<T>) {
        const Vec<T> e = exp<T>(load<T>(row + k) - shift);
        store<T>(row + k, e < least ? Vec<T>{} : e);
    }
    for (std::int64_t k = block.count; k < block.stride; ++k) row[k] = T(0);
}

// v = mean / the columns' sums of E u, where mean is what the columns of the result add up to; 0 for the columns that
// fill the last vector.
template <class T>
void normalise_columns(const Block<T>& block, T mean, const T* u, T* v) {
    T sums[kWidest] = {}, group[kWidest];
    for (std::int64_t first = 0; first < block.rows; first += kGroup) {
        const std::int64_t last = first + kGroup < block.rows ? first + kGroup : block.rows;
        for (std::int64_t b = first; b < last; ++b)
            for (std::int64_t k = 0; k < block.stride; k += kWidth<T>) {
                const Vec<T> weighted = load<T>(block.data + b * block.stride + k) * u[b];
                store<T>(group + k, b == first ? weighted : load<T>(group + k) + weighted);
            }
        for (std::int64_t k = 0; k < block.stride; k += kWidth<T>)
            store<T>(sums + k, load<T>(sums + k) + load<T>(group + k));
    }
    for (std::int64_t k = 0; k < block.stride; ++k) v[k] = k < block.count ? mean / sums[k] : T(0);
}

template <class T>
void sum_rows(const Block<T>& block, const T* v, T* sums) {
    for (std::int64_t b = 0; b < block.rows; ++b) {
        Vec<T> total = {};
        for (std::int64_t k = 0; k < block.stride; k += kWidth<T>)
            total += load<T>(block.data + b * block.stride + k) * load<T>(v + k);
        sums[b] = sum<T>(total);
    }
}

// u = 1 / the rows' sums of E v; returns the smallest of these sums.
template <class T>
double normalise_rows(const Problem<T>& p, Scaling<T>& scaling) {
    double smallest = __builtin_inf();
    for (std::int64_t b = 0; b < p.rows; ++b) {
        double total = 0;
        for (std::int64_t j = 0; j < p.blocks(); ++j) total += static_cast<double>(scaling.parts.get()[j * p.rows + b]);
        scaling.u.get()[b] = static_cast<T>(1.0 / total);
        if (total < smallest) smallest = total;
    }
    return smallest;
}

// The first iteration, which takes the exponentials.
template <class T>
double first_sweep(const Problem<T>& p, Scaling<T>& scaling, T* work) {
    // what u and v make of it later is then a normal number: with others processors take a hundred cycles
    const T least = static_cast<T>(4 * kSmallestNormal<T> * static_cast<double>(p.rows * p.columns));
    for_each_block(p, work, [&](std::int64_t j, const Block<T>& block) {
        read_logits(p, block);
        for (std::int64_t b = 0; b < p.rows; ++b) {
            T* row = block.data + b * block.stride;
            exponentials(row, scaling.shifts.get()[b], least, block);
            std::memcpy(p.out + b * p.columns + block.begin, row, static_cast<std::size_t>(block.count) * sizeof(T));
        }
        normalise_columns(block, p.mean(), scaling.u.get(), scaling.v.get() + block.begin);
        sum_rows(block, scaling.v.get() + block.begin, scaling.parts.get() + j * p.rows);
    });
    return normalise_rows(p, scaling);
}

// Subtracts from each row what keeps its largest exponential at 1, and starts u with what undoes it.
template <class T>
void row_shifts(const Problem<T>& p, Scaling<T>& scaling, T* work) {
    for_each_block(p, work, [&](std::int64_t j, const Block<T>& block) {
        read_logits(p, block);
        for (std::int64_t b = 0; b < p.rows; ++b) {
            T most = block.data[b * block.stride];
            for (std::int64_t k = 1; k < block.count; ++k)
                if (block.data[b * block.stride + k] > most) most = block.data[b * block.stride + k];
            scaling.parts.get()[j * p.rows + b] = most;
        }
    });
    for (std::int64_t b = 0; b < p.rows; ++b) {
        T most = scaling.parts.get()[b];
        for (std::int64_t j = 1; j < p.blocks(); ++j)
            if (scaling.parts.get()[j * p.rows + b] > most) most = scaling.parts.get()[j * p.rows + b];
        scaling.shifts.get()[b] = most;
        scaling.u.get()[b] = exp<T>(broadcast<T>(most))[0];
    }
}

template <class T>
void sweep(const Problem<T>& p, Scaling<T>& scaling, T* work) {
    for_each_block(p, work, [&](std::int64_t j, const Block<T>& block) {
        for (std::int64_t b = 0; b < p.rows; ++b) {
            T* row = block.data + b * block.stride;
            std::memcpy(row, p.out + b * p.columns + block.begin, static_cast<std::size_t>(block.count) * sizeof(T));
            for (std::int64_t k = block.count; k < block.stride; ++k) row[k] = T(0);
        }
        normalise_columns(block, p.mean(), scaling.u.get(), scaling.v.get() + block.begin);
        sum_rows(block, scaling.v.get() + block.begin, scaling.parts.get() + j * p.rows);
    });
    normalise_rows(p, scaling);
}

template <class T>
void multiply(const Problem<T>& p, const Scaling<T>& scaling) {
    const std::int64_t total = p.rows * p.columns;
    const T* v = scaling.v.get();
#pragma omp parallel for num_threads(p.threads) schedule(static, 1)
    for (int share = 0; share < p.threads; ++share) {
        std::int64_t i = total / p.threads * share;
        const std::int64_t end = share + 1 == p.threads ? total : total / p.threads * (share + 1);
        while (i < end) {  // what of one row is this thread's
            const std::int64_t b = i / p.columns, k = i % p.columns;
            const std::int64_t count = end - i < p.columns - k ? end - i : p.columns - k;
            const T u = scaling.u.get()[b];
            T* row = p.out + i;
#pragma GCC ivdep
            for (std::int64_t n = 0; n < count; ++n) row[n] = row[n] * v[k + n] * u;
            i += count;
        }
    }
}

template <class T>
void assign(const Problem<T>& p, std::int64_t iterations) {
    prefer_huge_pages(p.out, p.rows * p.columns * static_cast<std::int64_t>(sizeof(T)));
    Scaling<T> scaling(p);
    Buffer<T> work(p.threads * p.rows * p.width());
    if (first_sweep(p, scaling, work.get()) < kVanishing) {
        row_shifts(p, scaling, work.get());
        first_sweep(p, scaling, work.get());
    }
    for (std::int64_t i = 1; i < iterations; ++i) sweep(p, scaling, work.get());
    multiply(p, scaling);
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
