// The scheduler behind emulator.h: coroutines, barriers and the checks of a launch.
#include "emulator.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <ucontext.h>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastssl::cuda {
constexpr std::size_t kShared = 48 * 1024, kGuard = 64;  // what every GPU gives a block without being asked
// what common.cuh declares `extern __shared__`: an array of unknown size
alignas(16) thread_local unsigned char memory[kShared + kGuard];
}  // namespace fastssl::cuda

namespace emulator {
namespace {

using fastssl::cuda::kGuard;
using fastssl::cuda::kShared;
using fastssl::cuda::memory;

constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kStack = 128 * 1024;
constexpr unsigned char kCanary = 0x5a;

enum class State { ready, at_block, at_warp, ended };

struct Thread {
    std::unique_ptr<unsigned char[]> stack;
    std::jmp_buf place;
    State state = State::ended;
    unsigned lanes = 0;  // of the warp barrier it waits at
    uint3 index{};
};

std::mutex one_launch;
std::vector<Thread> pool;
std::jmp_buf scheduler;
unsigned current = 0, count = 0;
const std::function<void()>* work = nullptr;
alignas(16) unsigned char slots[kMaxThreads][16];
std::string failure;
bool backwards = false;

// What AddressSanitizer must know of a change of stacks.
#ifdef __SANITIZE_ADDRESS__
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
void leave_for_thread(unsigned i) { __sanitizer_start_switch_fiber(nullptr, pool[i].stack.get(), kStack); }
void leave_for_scheduler() { __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_size); }
void arrive_in_thread() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size); }
void arrive_in_scheduler() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
void guard_shared(std::size_t bytes) {
    ASAN_POISON_MEMORY_REGION(memory + bytes, kShared + kGuard - bytes);
}
void unguard_shared() { ASAN_UNPOISON_MEMORY_REGION(memory, kShared + kGuard); }
#else
void leave_for_thread(unsigned) {}
void leave_for_scheduler() {}
void arrive_in_thread() {}
void arrive_in_scheduler() {}
void guard_shared(std::size_t) {}
void unguard_shared() {}
#endif

__attribute__((noinline)) void yield(State state) {
    pool[current].state = state;
    leave_for_scheduler();
    if (_setjmp(pool[current].place) == 0) _longjmp(scheduler, 1);
    arrive_in_thread();
}

// A coroutine's whole life: it runs a kernel each time it is made ready anew.
[[noreturn]] void life() {
    arrive_in_thread();
    for (;;) {
        (*work)();
        yield(State::ended);
    }
}

// The first resumption needs a stack of its own; later ones jump.
__attribute__((noinline)) void resume(unsigned i) {
    current = i;
    threadIdx = pool[i].index;
    const bool fresh_one = !pool[i].stack;
    if (fresh_one) pool[i].stack.reset(new unsigned char[kStack]);
    leave_for_thread(i);
    if (_setjmp(scheduler) != 0) {
        arrive_in_scheduler();
        return;
    }
    if (!fresh_one) _longjmp(pool[i].place, 1);
    ucontext_t fresh;
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = pool[i].stack.get();
    fresh.uc_stack.ss_size = kStack;
    fresh.uc_link = nullptr;
    makecontext(&fresh, life, 0);
    setcontext(&fresh);
}

// Lets those go on whose barrier is complete; whether any could.
bool release() {
    bool released = false, waiting = false, all_at_block = true;
    for (unsigned i = 0; i < count; ++i) {
        waiting |= pool[i].state == State::at_block;
        all_at_block &= pool[i].state == State::at_block || pool[i].state == State::ended;
    }
    if (waiting && all_at_block) {
        for (unsigned i = 0; i < count; ++i)
            if (pool[i].state == State::at_block) pool[i].state = State::ready, released = true;
        return released;
    }
    for (unsigned i = 0; i < count; ++i) {
        if (pool[i].state != State::at_warp) continue;
        const unsigned warp = i / 32 * 32, lanes = pool[i].lanes;
        bool complete = true;
        for (unsigned lane = 0; lane < 32 && complete; ++lane) {
            if (!(lanes >> lane & 1)) continue;
            const unsigned other = warp + lane;
            if (other >= count || pool[other].state == State::ended) {
                failure = "a warp's exchange names lane " + std::to_string(lane) + ", which has ended";
                return false;
            }
            complete = pool[other].state == State::at_warp && pool[other].lanes == lanes;
        }
        for (unsigned lane = 0; lane < 32 && complete; ++lane)
            if (lanes >> lane & 1) pool[warp + lane].state = State::ready;
        released |= complete;
    }
    return released;
}

void run_block(std::size_t shared_bytes) {
    std::memset(memory, 0xff, shared_bytes);
    std::memset(memory + shared_bytes, kCanary, kGuard);
    guard_shared(shared_bytes);
    for (unsigned i = 0; i < count; ++i) {
        pool[i].state = State::ready;
        pool[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    }
    for (bool all_ended = false; !all_ended;) {
        bool ran = false;
        all_ended = true;
        for (unsigned k = 0; k < count; ++k) {
            const unsigned i = backwards ? count - 1 - k : k;
            if (pool[i].state == State::ready) resume(i), ran = true;
            all_ended &= pool[i].state == State::ended;
        }
        if (all_ended) break;
        const bool released = release();
        if (!failure.empty()) return;
        if (!ran && !released) {
            failure = "threads wait for one another for ever: not all reach the same barrier";
            return;
        }
    }
    unguard_shared();
    for (std::size_t i = 0; i < kGuard; ++i)
        if (memory[shared_bytes + i] != kCanary) failure = "a write beyond the end of the shared memory";
}

}  // namespace

void wait_for_block() { yield(State::at_block); }

void wait_for_warp(unsigned lanes) {
    pool[current].lanes = lanes;
    yield(State::at_warp);
}

void* slot(unsigned lane) { return slots[current / 32 * 32 + lane]; }
unsigned lane() { return current % 32; }

void require_global(const void* p) {
    const auto within = [&](const unsigned char* start, std::size_t bytes) {
        const auto address = reinterpret_cast<std::uintptr_t>(p), first = reinterpret_cast<std::uintptr_t>(start);
        return address >= first && address < first + bytes;
    };
    if (within(memory, kShared + kGuard)) failure = "an access to global memory with an address in shared memory";
    if (within(pool[current].stack.get(), kStack)) failure = "an access to global memory with an address of a local variable";
}

cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body) {
    const std::lock_guard<std::mutex> lock(one_launch);
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
        grid.y > 65535 || grid.z == 0 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (shared_bytes > kShared) return cudaErrorInvalidValue;
    gridDim = grid, blockDim = block, count = static_cast<unsigned>(threads), work = &body;
    if (pool.size() < count) pool.resize(kMaxThreads);
    backwards = !backwards;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    for (std::uint64_t k = 0; k < blocks && failure.empty(); ++k) {
        const std::uint64_t i = backwards ? blocks - 1 - k : k;
        blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                    static_cast<unsigned>(i / grid.x / grid.y)};
        run_block(shared_bytes);
    }
    if (failure.empty()) return cudaSuccess;
    std::fprintf(stderr, "emulated launch of block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, failure.c_str());
    failure.clear();
    pool.clear();  // coroutines that stopped half way are given up
    return cudaErrorLaunchFailure;
}

}  // namespace emulator

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
    }
    return "unknown error";
}
