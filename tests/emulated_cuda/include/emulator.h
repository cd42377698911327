// A GPU's execution model on one processor core, so that the kernels' sources can be compiled by an ordinary C++ compiler
// and tested where there is no GPU: what each thread computes and in which order threads may meet, not how fast.
//
// A block's threads are coroutines that change over at barriers alone; blocks run one after the other. Launches
// alternate between first-to-last and last-to-first order of blocks and threads, so a result that depends on the order,
// as it does where a barrier is missing, differs between two runs. Shared memory is 0xff in every byte when a block begins
// (NaN, or -1) and has a guard behind it. A launch that CUDA would refuse is refused; threads that wait for one
// another for ever, or a warp's exchange that names lanes which have ended, fail the launch in words.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local  // one block at a time; extern arrays are defined by emulator.cpp

using std::isfinite;
using std::isinf;
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
constexpr int warpSize = 32;

template <class T>
struct alignas(2 * sizeof(T)) EmulatedVector2 {
    T x, y;
};
template <class T>
struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) EmulatedVector4 {
    T x, y, z, w;
};
using float2 = EmulatedVector2<float>;
using int2 = EmulatedVector2<int>;
using uint2 = EmulatedVector2<unsigned>;
using double2 = EmulatedVector2<double>;
using longlong2 = EmulatedVector2<long long>;
using ulonglong2 = EmulatedVector2<unsigned long long>;
using float4 = EmulatedVector4<float>;
using int4 = EmulatedVector4<int>;
using uint4 = EmulatedVector4<unsigned>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

void wait_for_block();
void wait_for_warp(unsigned lanes);  // those of a mask, which all must arrive with the same one
void* slot(unsigned lane);           // 16 bytes of each lane of the calling thread's warp
void* slot_of_thread(unsigned thread);
unsigned lane();
unsigned threads();
cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, const void* kernel, const std::function<void()>& body);
cudaError_t allow_shared(const void* kernel, int bytes);

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

template <class F>
int across_block(int predicate, F combine) {
    extern int* slots_of_block();
    int* const slots = slots_of_block();
    const unsigned me = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    slots[me] = predicate;
    wait_for_block();
    int result = slots[0] != 0;
    for (unsigned i = 1; i < threads(); ++i) result = combine(result, slots[i] != 0);
    wait_for_block();
    return result;
}

}  // namespace emulator

// ---- launches ----

struct cudaLaunchAttribute {
    int id;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Parameters... arguments) {
    return emulator::run(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                         reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); });
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
    return emulator::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}

// ---- barriers and exchanges ----

inline void __syncthreads() { emulator::wait_for_block(); }
inline int __syncthreads_or(int p) { return emulator::across_block(p, [](int a, int b) { return a | b; }); }
inline int __syncthreads_and(int p) { return emulator::across_block(p, [](int a, int b) { return a & b; }); }
inline int __syncthreads_count(int p) { return emulator::across_block(p, [](int a, int b) { return a + b; }); }
inline void __syncwarp(unsigned lanes = 0xffffffffu) { emulator::wait_for_warp(lanes); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned lanes, T value, int source, int width = 32) {
    const unsigned me = emulator::lane(), group = me / width * width;
    return emulator::from_lane(lanes, value, group + static_cast<unsigned>(source) % width);
}
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
template <class T>
T __shfl_up_sync(unsigned lanes, T value, unsigned step, int width = 32) {
    const unsigned me = emulator::lane();
    return emulator::from_lane(lanes, value, me % width >= step ? me - step : me);
}
inline unsigned __ballot_sync(unsigned lanes, int predicate) {
    return emulator::exchange(lanes, predicate, [&](const int(&values)[32]) {
        unsigned found = 0;
        for (unsigned i = 0; i < 32; ++i) found |= static_cast<unsigned>((lanes >> i & 1) && values[i] != 0) << i;
        return found;
    });
}
inline int __any_sync(unsigned lanes, int predicate) { return __ballot_sync(lanes, predicate) != 0; }
inline int __all_sync(unsigned lanes, int predicate) { return __ballot_sync(lanes, predicate) == lanes; }
template <class T>
T __reduce_add_sync(unsigned lanes, T value) {
    return emulator::exchange(lanes, value, [&](const T(&values)[32]) {
        T sum = 0;
        for (T x : values) sum += x;  // those outside the mask are zero
        return sum;
    });
}
template <class T, class F>
T emulated_reduce(unsigned lanes, T value, F better) {
    return emulator::exchange(lanes, value, [&](const T(&values)[32]) {
        T best = value;
        for (unsigned i = 0; i < 32; ++i)
            if (lanes >> i & 1) best = better(best, values[i]);
        return best;
    });
}
template <class T>
T __reduce_min_sync(unsigned lanes, T value) {
    return emulated_reduce(lanes, value, [](T a, T b) { return a < b ? a : b; });
}
template <class T>
T __reduce_max_sync(unsigned lanes, T value) {
    return emulated_reduce(lanes, value, [](T a, T b) { return a < b ? b : a; });
}

// ---- memory ----

template <class T>
T __ldg(const T* p) { return *p; }
template <class T>
T __ldcg(const T* p) { return *p; }
template <class T>
T __ldcs(const T* p) { return *p; }
template <class T>
void __stcg(T* p, T value) { *p = value; }
template <class T>
void __stcs(T* p, T value) { *p = value; }

template <class T, class F>
T emulated_atomic(T* p, F change) {
    const T before = *p;
    *p = change(before);
    return before;
}
template <class T>
T atomicAdd(T* p, T x) { return emulated_atomic(p, [&](T old) { return static_cast<T>(old + x); }); }
template <class T>
T atomicMin(T* p, T x) { return emulated_atomic(p, [&](T old) { return x < old ? x : old; }); }
template <class T>
T atomicMax(T* p, T x) { return emulated_atomic(p, [&](T old) { return old < x ? x : old; }); }
template <class T>
T atomicOr(T* p, T x) { return emulated_atomic(p, [&](T old) { return old | x; }); }
template <class T>
T atomicExch(T* p, T x) { return emulated_atomic(p, [&](T) { return x; }); }
template <class T>
T atomicCAS(T* p, T expected, T x) { return emulated_atomic(p, [&](T old) { return old == expected ? x : old; }); }

// ---- arithmetic ----

template <class To, class From>
To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __clzll(unsigned long long x) { return x == 0 ? 64 : __builtin_clzll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rcbrtf(float x) { return 1.0f / std::cbrt(x); }
