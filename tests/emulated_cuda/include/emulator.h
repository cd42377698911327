// A GPU's execution model on one processor core, so that the kernels' sources can be compiled by an ordinary C++ compiler
// and tested where there is no GPU: what each thread computes and in which order threads may meet, not how fast.
//
// A block's threads are coroutines that change over at barriers alone; blocks run one after the other. Launches
// alternate between first-to-last and last-to-first order of blocks and threads, so a result that depends on the order,
// as it does where a barrier is missing, differs between two runs. Shared memory is 0xff in every byte when a block begins
// (NaN, or -1) and has a guard behind it. A launch that CUDA would refuse is refused; threads that wait for one
// another for ever, or a warp's exchange that names lanes which have ended, fail the launch in words. There is one stream,
// kStream, and the default one is not it: a launch on another than it was given is refused.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local  // one block at a time; extern arrays are defined by emulator.cpp

using std::isnan;
using std::max;
using std::min;
using std::sqrt;

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
    unsigned x, y, z;
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

struct alignas(16) int4 {
    int x, y, z, w;
};

namespace emulator {

void wait_for_block();
void wait_for_warp(unsigned lanes);  // those of a mask, which all must arrive with the same one
void* slot(unsigned lane);           // 16 bytes of each lane of the calling thread's warp
unsigned lane();
void require_global(const void* p);
cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body);
constexpr std::uintptr_t kStream = 0x57;  // tests/ops/emulated.py

// Every lane of the mask hands `value` over; `combine(values)` then sees those of all lanes, as an array of 32.
template <class T, class F>
auto exchange(unsigned lanes, T value, F combine) {
    static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
    std::memcpy(slot(lane()), &value, sizeof value);
    wait_for_warp(lanes);
    T values[32] = {};
    for (unsigned i = 0; i < 32; ++i)
        if (lanes >> i & 1) std::memcpy(&values[i], slot(i), sizeof value);
    wait_for_warp(lanes);
    return combine(values);
}

template <class T>
T from_lane(unsigned lanes, T value, unsigned source) {
    // a lane outside the mask has no defined value: what comes back is all ones, NaN or -1
    return exchange(lanes, value, [&](const T(&values)[32]) {
        T found = values[source & 31];
        if (!(lanes >> (source & 31) & 1)) std::memset(&found, 0xff, sizeof found);
        return found;
    });
}

}  // namespace emulator

// ---- launches ----

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Parameters... arguments) {
    if (reinterpret_cast<std::uintptr_t>(config->stream) != emulator::kStream) return cudaErrorInvalidResourceHandle;
    return emulator::run(config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(arguments...); });
}

// ---- barriers and exchanges ----

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned lanes = 0xffffffffu) { emulator::wait_for_warp(lanes); }

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int flip, int width = 32) {
    const unsigned me = emulator::lane(), other = me ^ static_cast<unsigned>(flip);
    return emulator::from_lane(lanes, value, other / width <= me / width ? other : me);
}
template <class T>
T __shfl_down_sync(unsigned lanes, T value, unsigned step, int width = 32) {
    const unsigned me = emulator::lane(), other = me + step;
    return emulator::from_lane(lanes, value, other / width == me / width ? other : me);
}
inline unsigned __ballot_sync(unsigned lanes, int predicate) {
    return emulator::exchange(lanes, predicate, [&](const int(&values)[32]) {
        unsigned found = 0;
        for (unsigned i = 0; i < 32; ++i) found |= static_cast<unsigned>((lanes >> i & 1) && values[i] != 0) << i;
        return found;
    });
}

// ---- memory ----

// These name the GPU's memory in their instruction: of a block's shared memory or a thread's own they fail the launch.
template <class T>
T __ldg(const T* p) {
    emulator::require_global(p);
    return *p;
}
template <class T>
void __stwb(T* p, T value) {
    emulator::require_global(p);
    *p = value;
}

template <class T, class F>
T emulated_atomic(T* p, F change) {
    const T before = *p;
    *p = change(before);
    return before;
}
template <class T>
T atomicMin(T* p, T x) { return emulated_atomic(p, [&](T old) { return x < old ? x : old; }); }
template <class T>
T atomicMax(T* p, T x) { return emulated_atomic(p, [&](T old) { return old < x ? x : old; }); }

// ---- arithmetic ----

template <class To, class From>
To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
inline float __log2f(float x) { return std::log2(x); }
