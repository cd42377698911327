// Weighted k-nearest-neighbour votes (Wu et al. 2018, arXiv:1805.01978, section 3.4).
//
//   s_ij = <x_i, b_j>, rows of unit length        N_i = the k largest s_ij, of equal ones the lowest j
//   score_ic = sum_{j in N_i, label_j = c} exp(s_ij / t) / sum_{j in N_i} exp(s_ij / t)
//
// A thread takes a block of queries that fits its second-level cache, transposed so that queries are the lanes of
// vectors, and streams the bank through it, kBlockRows rows at a time: these lie in the first-level cache, widened and
// scaled to unit length, while every panel of kBlockColumns queries passes. Each block of products is compared with
// its queries' thresholds at once and goes no further but for the few candidates above (top_k.h).
// A product is summed over d in the same order wherever its rows stand: equal rows of the bank tie exactly, and the
// result does not depend on the number of threads.
//
// 2 queries size d floating-point operations. Reads the bank once a block of queries. Extra memory: for each thread
// at most kPanelBytes + kCandidateBytes, or what one panel takes.
// Accumulated in float (double for f64). A query with NaN, or every query if the bank has one, scores NaN.
// Reference and tests: fastssl/ops/knn_classify.py, tests/ops/test_knn_classify.py.
#include "knn_classify.h"

#include <math.h>

#include "buffer.h"
#include "tile.h"
#include "top_k.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr int kDepth = 512;            // features multiplied at a time
constexpr int kDepthStride = kDepth + 16;  // rows a multiple of 4096 bytes apart would share cache lines' places
constexpr std::int64_t kPanelBytes = 1 << 20, kCandidateBytes = 4 << 20;

template <class T>
struct Sizes {
    Sizes(std::int64_t queries, std::int64_t size, std::int64_t d, std::int64_t k, int threads)
        : queries(queries), size(size), d(d), k(k), capacity(candidate_capacity<T>(k, size)) {
        const std::int64_t panels = (queries + kBlockColumns<T> - 1) / kBlockColumns<T>;
        const std::int64_t by_features = kPanelBytes / (kBlockColumns<T> * d * static_cast<std::int64_t>(sizeof(T)));
        const std::int64_t by_candidates =
            kCandidateBytes / (kBlockColumns<T> * capacity * static_cast<std::int64_t>(sizeof(T) + sizeof(std::int64_t)));
        const std::int64_t smaller = by_features < by_candidates ? by_features : by_candidates;
        const std::int64_t most = smaller < 1 ? 1 : smaller;
        blocks = ((panels + most - 1) / most + threads - 1) / threads * threads;
        block_panels = (panels + blocks - 1) / blocks;
    }

    std::int64_t block_queries() const { return block_panels * kBlockColumns<T>; }
    std::int64_t chunks() const { return (d + kDepth - 1) / kDepth; }
    std::int64_t row_length() const { return (d + kWidth<T> - 1) / kWidth<T> * kWidth<T>; }

    std::int64_t queries, size, d, k, capacity, blocks, block_panels;
};

// One thread's working memory.
template <class T>
struct Workspace {
    Workspace(const Sizes<T>& sizes, std::uintptr_t memory) {
        Layout layout{memory};
        panels = layout.take<T>(sizes.block_queries() * sizes.d);
        rows = layout.take<T>(sizes.chunks() * kBlockRows * kDepthStride);
        row = layout.take<T>(sizes.row_length());
        finite = layout.take<bool>(sizes.block_queries());
        candidates = layout.candidates<T>(sizes.block_queries(), sizes.k, sizes.capacity);
        end = layout.end;
    }

    std::uintptr_t end;
    T* panels;     // [panel][d][kBlockColumns], queries of unit length
    T* rows;       // [chunk][kBlockRows][kDepthStride], rows of the bank of unit length
    T* row;        // one row on its way there
    bool* finite;  // [query]
    Candidates<T> candidates;
};

// `in` scaled to unit length as torch.nn.functional.normalize does it, padded with zeros to whole vectors; false where
// that gives NaN.
template <class T, class S>
bool unit_row(const S* in, std::int64_t d, T* out) {
    std::int64_t padded = d;
    for (std::int64_t i = 0; i < d; ++i) out[i] = static_cast<T>(widen(in[i]));
    for (; padded % kWidth<T> != 0; ++padded) out[padded] = T(0);
    Vec<T> squares = {}, total = {};
    for (std::int64_t i = 0; i < padded; i += kWidth<T>) squares += load<T>(out + i) * load<T>(out + i);
    const T norm = static_cast<T>(::sqrt(static_cast<double>(sum<T>(squares))));
    const T scale = T(1) / (norm < T(1e-12) ? T(1e-12) : norm);  // a division an element would cost as much as a panel
    for (std::int64_t i = 0; i < padded; i += kWidth<T>) {
        const Vec<T> unit = load<T>(out + i) * scale;
        total += unit;
        store<T>(out + i, unit);
    }
    const T checked = sum<T>(total);
    return checked == checked;
}

template <class T, class S>
void pack_queries(const S* features, std::int64_t first, const Sizes<T>& sizes, const Workspace<T>& space) {
    for (std::int64_t q = 0; q < sizes.block_queries(); ++q) {
        T* out = space.panels + q / kBlockColumns<T> * kBlockColumns<T> * sizes.d + q % kBlockColumns<T>;
        const bool real = first + q < sizes.queries;
        const bool finite = real && unit_row<T>(features + (first + q) * sizes.d, sizes.d, space.row);
        for (std::int64_t i = 0; i < sizes.d; ++i) out[i * kBlockColumns<T>] = finite ? space.row[i] : T(0);
        space.candidates.begin(q, finite);
        space.finite[q] = finite;
    }
}

// Rows [first, first + rows) of the bank; false if one has NaN.
template <class T, class S>
bool pack_bank(const S* bank, std::int64_t first, int rows, const Sizes<T>& sizes, const Workspace<T>& space) {
    bool finite = true;
    for (int r = 0; r < rows; ++r) {
        finite = unit_row<T>(bank + (first + r) * sizes.d, sizes.d, space.row) && finite;
        for (std::int64_t i = 0; i < sizes.row_length(); i += kWidth<T>)
            store<T>(space.rows + (i / kDepth * kBlockRows + r) * kDepthStride + i % kDepth,
                     load<T>(space.row + i));
    }
    return finite;
}

// The packed rows of the bank, which begin at `first`, against every panel of queries.
template <class T>
void compare(std::int64_t first, int rows, const Sizes<T>& sizes, const Workspace<T>& space) {
    constexpr int columns = kBlockColumns<T>;
    alignas(64) T products[kBlockRows * columns];
    for (std::int64_t panel = 0; panel < sizes.block_panels; ++panel) {
        const T* queries = space.panels + panel * columns * sizes.d;
        multiply_block<T, kDepthStride, 1, false>(space.rows, queries, columns,
                                                  sizes.d < kDepth ? sizes.d : kDepth, products, columns);
        for (std::int64_t chunk = 1; chunk < sizes.chunks(); ++chunk) {
            const std::int64_t left = sizes.d - chunk * kDepth;
            multiply_block<T, kDepthStride, 1, true>(space.rows + chunk * kBlockRows * kDepthStride,
                                                     queries + chunk * kDepth * columns, columns,
                                                     left < kDepth ? left : kDepth, products, columns);
        }
        const T* thresholds = space.candidates.thresholds + panel * columns;
        for (int r = 0; r < rows; ++r)
            for (int j = 0; j < columns; j += kWidth<T>) {
                unsigned above = lanes_above<T>(load<T>(products + r * columns + j), load<T>(thresholds + j));
                for (; above != 0; above &= above - 1) {
                    const int lane = j + __builtin_ctz(above);
                    space.candidates.add(panel * columns + lane, products[r * columns + lane], first + r);
                }
            }
    }
}

// The k nearest, of which the candidates of one query are a superset, vote.
template <class T>
void vote(std::int64_t query, T temperature, const std::int64_t* labels, std::int64_t classes, const Sizes<T>& sizes,
          const Workspace<T>& space, T* scores) {
    double total;
    const std::int64_t kept = space.candidates.finish(query, temperature, &total);
    const T* weights = space.candidates.values + query * sizes.capacity;
    const std::int64_t* ids = space.candidates.ids + query * sizes.capacity;
    for (std::int64_t c = 0; c < classes; ++c) scores[c] = T(0);
    for (std::int64_t i = 0; i < kept; ++i) scores[labels[ids[i]]] += weights[i];
    for (std::int64_t c = 0; c < classes; ++c) scores[c] /= static_cast<T>(total);
}

template <class T, class S>
void classify_block(const S* features, const S* bank, const std::int64_t* labels, std::int64_t first, T temperature,
                    std::int64_t classes, const Sizes<T>& sizes, const Workspace<T>& space, T* scores) {
    pack_queries<T>(features, first, sizes, space);
    bool bank_finite = true;
    for (std::int64_t j = 0; j < sizes.size; j += kBlockRows) {
        const std::int64_t left = sizes.size - j;
        const int rows = static_cast<int>(left < kBlockRows ? left : kBlockRows);
        bank_finite = pack_bank<T>(bank, j, rows, sizes, space) && bank_finite;
        if (!bank_finite) break;
        compare<T>(j, rows, sizes, space);
    }
    for (std::int64_t q = 0; q < sizes.block_queries() && first + q < sizes.queries; ++q) {
        T* out = scores + (first + q) * classes;
        if (bank_finite && space.finite[q])
            vote<T>(q, temperature, labels, classes, sizes, space, out);
        else
            for (std::int64_t c = 0; c < classes; ++c) out[c] = T(__builtin_nan(""));
    }
}

template <class T, class S>
void classify(const S* features, const S* bank, const std::int64_t* labels, const Sizes<T>& sizes, T temperature,
              std::int64_t classes, T* scores, int threads) {
    const auto bytes = static_cast<std::int64_t>(Workspace<T>(sizes, 0).end);
    const Buffer<char> memory(bytes * threads);  // before the threads: what cannot be had is thrown here
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int share = 0; share < threads; ++share) {
        const Workspace<T> space(sizes, reinterpret_cast<std::uintptr_t>(memory.get() + bytes * share));
        for (std::int64_t i = 0; i < sizes.chunks() * kBlockRows * kDepthStride; ++i) space.rows[i] = T(0);
        for (std::int64_t block = share; block < sizes.blocks; block += threads) {
            const std::int64_t first = block * sizes.block_queries();
            if (first < sizes.queries)
                classify_block<T>(features, bank, labels, first, temperature, classes, sizes, space, scores);
        }
    }
}

}  // namespace

void knn_classify(const void* features, const void* bank, const std::int64_t* labels, std::int64_t queries,
                  std::int64_t size, std::int64_t d, DType dtype, std::int64_t k, double temperature,
                  std::int64_t classes, void* scores, int threads) {
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        using T = decltype(widen(type));
        classify<T>(static_cast<const S*>(features), static_cast<const S*>(bank), labels,
                    Sizes<T>(queries, size, d, k, threads), static_cast<T>(temperature), classes,
                    static_cast<T*>(scores), threads);
    });
}

}  // namespace fastssl::FASTSSL_ISA
