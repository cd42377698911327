#include "pages.h"

#include <atomic>
#include <cstdlib>

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

namespace {

struct Block {
    void* data;
    std::int64_t bytes;
};

// Blocks that nobody uses, oldest first.
struct Kept {
    static constexpr int kBlocks = 32;
    Block blocks[kBlocks];
    int count = 0;
    std::int64_t bytes = 0;
    std::atomic_flag busy = ATOMIC_FLAG_INIT;

    Block take(int index) {
        const Block taken = blocks[index];
        for (int i = index; i + 1 < count; ++i) blocks[i] = blocks[i + 1];
        --count;
        bytes -= taken.bytes;
        return taken;
    }
};

Kept& kept() {
    static Kept* const all = new Kept;  // never destroyed: a thread may outlive what is
    return *all;
}

// Smaller ones come from memory that the allocator keeps itself; address sanitizers are to see each use of any.
bool worth_keeping([[maybe_unused]] std::int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    return false;
#else
    return bytes >= std::int64_t{64} << 10;
#endif
}

// Whether nobody else is at it. One who is told no does without: to wait could mean for ever in a process that was
// forked meanwhile.
class Turn {
public:
    Turn() : is_mine(!kept().busy.test_and_set(std::memory_order_acquire)) {}
    ~Turn() {
        if (is_mine) kept().busy.clear(std::memory_order_release);
    }
    const bool is_mine;
};

}  // namespace

void* borrow(std::int64_t* bytes) {
    if (worth_keeping(*bytes)) {
        const Turn turn;
        int best = -1;
        for (int i = 0; turn.is_mine && i < kept().count; ++i) {
            const std::int64_t size = kept().blocks[i].bytes;
            if (size >= *bytes && size / 2 <= *bytes && (best < 0 || size < kept().blocks[best].bytes)) best = i;
        }
        if (best >= 0) {
            const Block block = kept().take(best);
            *bytes = block.bytes;
            return block.data;
        }
    }
    *bytes = (*bytes + 63) / 64 * 64;
    return std::aligned_alloc(64, static_cast<std::size_t>(*bytes));
}

void give_back(void* data, std::int64_t bytes) {
    if (worth_keeping(bytes) && bytes <= kMostKept) {
        const Turn turn;
        if (turn.is_mine) {
            while (kept().count == Kept::kBlocks || kept().bytes + bytes > kMostKept) std::free(kept().take(0).data);
            kept().blocks[kept().count++] = {data, bytes};
            kept().bytes += bytes;
            return;
        }
    }
    std::free(data);
}

void release_kept() {
    const Turn turn;
    while (turn.is_mine && kept().count > 0) std::free(kept().take(0).data);
}

}  // namespace fastssl
