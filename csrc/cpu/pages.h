// How the system backs large results and working memory.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "isa.h"

namespace fastssl::FASTSSL_ISA {

// Asks for huge pages in [data, data + bytes) before it is first written, as NumPy does for its arrays: allocators take
// large blocks from the system anew each time, and the fault at every 4 KB of them may cost more than the writing.
// Only whole huge pages inside are concerned, and small results not at all; a system that declines changes nothing.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
    const auto start = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t first = (start + page - 1) / page * page;
    const std::uintptr_t last = (start + static_cast<std::uintptr_t>(bytes)) / page * page;
    if (first + 2 * page <= last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace fastssl::FASTSSL_ISA

namespace fastssl {

// Whether to write this output with stores that go past the caches (stream.h), after having it backed by memory.
//
// The first write to a page also leaves it, zeroed, in the cache, where stores past it are slow. So all pages are touched
// here, by all threads, huge ones where there are. False for outputs small enough for their reader to find them in the
// cache, and where the system cannot do this.
bool back_for_streaming(void* data, std::int64_t bytes, int threads);

// Memory of at least *bytes, aligned to a cache line, and how many bytes it has; null if there is none. Give it back
// with its size. Some is then kept for later calls, at most kMostKept bytes: the system zeroes the pages of large blocks
// anew each time that they are allocated, which takes longer than the packing of rows into them.
void* borrow(std::int64_t* bytes);
void give_back(void* data, std::int64_t bytes);
constexpr std::int64_t kMostKept = std::int64_t{64} << 20;

// Returns to the system what is kept, as far as no other thread is taking or giving back.
void release_kept();

}  // namespace fastssl
