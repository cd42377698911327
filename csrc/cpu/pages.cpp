#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastssl {
namespace {

constexpr std::int64_t kLargePage = std::int64_t{1} << 21;
constexpr std::int64_t kStreamFrom = std::int64_t{16} << 20;  // as much as is still near in a cache when it is read

}  // namespace

#if defined(__linux__) && defined(MADV_POPULATE_WRITE) && defined(MADV_HUGEPAGE)
bool back_for_streaming(void* data, std::int64_t bytes, int threads) {
    if (bytes < kStreamFrom) return false;
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    // whole large pages inside the output; its ends are left as they are
    const std::uintptr_t first = (address + kLargePage - 1) / kLargePage * kLargePage;
    const std::int64_t pages = static_cast<std::int64_t>((address + bytes) / kLargePage - first / kLargePage);
    madvise(reinterpret_cast<void*>(first), pages * kLargePage, MADV_HUGEPAGE);  // refused where there are none: no harm
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : failed)
    for (int share = 0; share < threads; ++share) {
        const std::int64_t begin = pages * share / threads, end = pages * (share + 1) / threads;
        if (begin < end)
            failed += madvise(reinterpret_cast<void*>(first + begin * kLargePage), (end - begin) * kLargePage,
                              MADV_POPULATE_WRITE) != 0;
    }
    return failed == 0;
}
#else
bool back_for_streaming(void*, std::int64_t, int) { return false; }
#endif

}  // namespace fastssl
