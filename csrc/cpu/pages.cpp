#include "pages.h"

namespace fastssl {

#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
bool back_for_streaming(void* data, std::int64_t bytes, int threads) {
    constexpr std::int64_t kStreamFrom = std::int64_t{16} << 20;  // as much as is still near in a cache when it is read
    constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
    if (bytes < kStreamFrom) return false;
    FASTSSL_ISA::prefer_huge_pages(data, bytes);
    // whole huge pages inside the output; its ends are left as they are
    const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) / kPage;
    const std::uintptr_t pages = (reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(bytes)) / kPage - first;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : failed)
    for (int share = 0; share < threads; ++share) {
        const std::uintptr_t begin = first + pages * share / threads, end = first + pages * (share + 1) / threads;
        if (begin < end)
            failed += ::madvise(reinterpret_cast<void*>(begin * kPage), (end - begin) * kPage, MADV_POPULATE_WRITE) != 0;
    }
    return failed == 0;
}
#else
bool back_for_streaming(void*, std::int64_t, int) { return false; }
#endif

}  // namespace fastssl
