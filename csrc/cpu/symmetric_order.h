// Every pair of blocks of a symmetric matrix once, in parallel: the order of NT-Xent's tiles.
#pragma once

#include <sched.h>

#include <cstdint>

#include "buffer.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

// Waits until *counter has reached `count`. Whoever is waited for is at work already, so it is short.
inline void wait_for(const std::int64_t* counter, std::int64_t count) {
    for (std::int64_t spins = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) < count; ++spins)
        if (spins > 1000) sched_yield();  // with more threads than processors
}

// The order in which the pairs of blocks are visited. Blocks form groups, small enough that what two groups hold stays
// in a processor's own cache. In outer round r group A meets group (r - A) mod groups; while two groups meet, block a
// of the one meets block (q - a) mod size of the other in inner round q. So each block has one partner in each round.
struct Order {
    Order(std::int64_t blocks, std::int64_t bytes_a_block)
        : blocks(blocks), size(group_size(blocks, bytes_a_block)), groups((blocks + size - 1) / size) {}

    static constexpr std::int64_t kCache = 5 << 18;  // bytes: most of a core's second-level cache
    std::int64_t blocks, size, groups;

private:
    // Of few blocks, groups are so small that threads seldom wait for each other's.
    static std::int64_t group_size(std::int64_t blocks, std::int64_t bytes_a_block) {
        const std::int64_t held = bytes_a_block < kCache / 16 ? 8 : kCache / (2 * bytes_a_block);
        const std::int64_t most = blocks / 10 < held ? blocks / 10 : held;
        return most < 1 ? 1 : most;
    }
};

// Calls visit(I, J) once for every pair I <= J of blocks. Each thread takes the next meeting of two groups, or where
// these are too few the next tile; a tile waits only for its own blocks' tiles of earlier rounds, and these have begun.
template <class Visit>
void for_each_tile(const Order& order, int threads, Visit visit) {
    Buffer<std::int64_t> rounds(order.groups * order.size);  // done, for each block
    for (std::int64_t i = 0; i < order.groups * order.size; ++i) rounds.get()[i] = 0;
    const std::int64_t tiles = order.size * order.size;
    const std::int64_t taken = order.groups >= 4 * threads ? tiles : 1;  // at a time
    std::int64_t next = 0;
#pragma omp parallel num_threads(at_most(threads, order.blocks))
    for (;;) {
        const std::int64_t begin = __atomic_fetch_add(&next, taken, __ATOMIC_RELAXED);
        const std::int64_t outer = begin / tiles / order.groups, group = begin / tiles % order.groups;
        const std::int64_t partner = (outer + order.groups - group) % order.groups;
        if (outer >= order.groups) break;
        if (group > partner) continue;
        for (std::int64_t tile = begin % tiles; tile < begin % tiles + taken; ++tile) {
            const std::int64_t inner = tile / order.size, a = tile % order.size;
            const std::int64_t b = (inner + order.size - a) % order.size;
            if (group == partner && a > b) continue;
            const std::int64_t first = group * order.size + a, second = partner * order.size + b;
            const std::int64_t round = outer * order.size + inner;
            wait_for(rounds.get() + first, round);
            wait_for(rounds.get() + second, round);
            if (first < order.blocks && second < order.blocks) visit(first, second);
            __atomic_store_n(rounds.get() + first, round + 1, __ATOMIC_RELEASE);
            // a second store to the same counter could undo what another thread, let go by the first, has done since
            if (second != first) __atomic_store_n(rounds.get() + second, round + 1, __ATOMIC_RELEASE);
        }
    }
}

}  // namespace
}  // namespace fastssl::FASTSSL_ISA
