// The center of DINO's teacher (Caron et al. 2021, arXiv:2104.14294, eq. 4).
//
//   center_k = momentum * center_k + (1 - momentum) * mean over rows of rows_bk
//
// Each block of kBlock columns is summed in the nearest cache over all rows, kGroup rows at a time, in float (double for
// an f64 center). Bytes moved: rows read once. Blocks are shared by the threads: the same bits for any number of them.
// Reference and tests: fastssl/ops/update_center.py, tests/ops/test_update_center.py.
#include "update_center.h"

#include "simd.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr std::int64_t kBlock = 1024;  // columns
constexpr std::int64_t kGroup = 64;    // rows: the error grows with kGroup + rows / kGroup

template <class T, class S>
void add_row(const S* row, std::int64_t columns, T* sums) {
#pragma GCC ivdep
    for (std::int64_t k = 0; k < columns; ++k) sums[k] += static_cast<T>(widen(row[k]));
}

// One block: `columns` of rows that lie `stride` apart.
template <class T, class S>
void update_block(T* center, const S* rows, std::int64_t count, std::int64_t columns, std::int64_t stride, T momentum,
                  T rate) {
    alignas(64) T sums[kBlock], group[kBlock];
    for (std::int64_t k = 0; k < columns; ++k) sums[k] = T(0);
    for (std::int64_t first = 0; first < count; first += kGroup) {
        const std::int64_t last = first + kGroup < count ? first + kGroup : count;
        for (std::int64_t k = 0; k < columns; ++k) group[k] = T(0);
        for (std::int64_t b = first; b < last; ++b) add_row(rows + b * stride, columns, group);
        add_row(group, columns, sums);
    }
    // without momentum nothing of the old center is left, infinity and NaN neither
    for (std::int64_t k = 0; k < columns; ++k)
        center[k] = (momentum == T(0) ? T(0) : momentum * center[k]) + rate * sums[k];
}

}  // namespace

void update_center(void* center, DType center_dtype, const void* rows, std::int64_t count, std::int64_t columns,
                   DType rows_dtype, double momentum, int threads) {
    if (momentum == 1.0) return;  // the center stays, whatever the rows hold
    const std::int64_t blocks = (columns + kBlock - 1) / kBlock;
    const int shares = at_most(threads, blocks);
    const auto run = [&](auto type) {
        using T = decltype(type);
        const T m = static_cast<T>(momentum), rate = static_cast<T>((1.0 - momentum) / static_cast<double>(count));
        with_type(rows_dtype, [&](auto row_type) {
            const auto* in = static_cast<const decltype(row_type)*>(rows);
#pragma omp parallel for num_threads(shares) schedule(static)
            for (std::int64_t j = 0; j < blocks; ++j) {
                const std::int64_t begin = j * kBlock, left = columns - begin;
                update_block(static_cast<T*>(center) + begin, in + begin, count, left < kBlock ? left : kBlock, columns,
                             m, rate);
            }
        });
    };
    if (center_dtype == DType::f64)
        run(double{});
    else
        run(float{});
}

}  // namespace fastssl::FASTSSL_ISA
