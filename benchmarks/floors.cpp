// What this machine can do at most: fused multiply-adds, bytes moved, exponentials. benchmarks/floors.py compiles it for
// the machine it runs on and holds the ops' times against it.
//
// Each function repeats short runs on `threads` threads for about `seconds` and returns the best rate of any, a second.
#include <chrono>
#include <cstdint>
#include <cstring>

#include "../csrc/cpu/matrix_unit.h"

namespace {

using namespace fastssl::FASTSSL_ISA;

template <class Run>
double best_rate(double work, double seconds, Run run) {
    using Clock = std::chrono::steady_clock;
    double best = 0;
    run();
    const auto start = Clock::now();
    for (auto before = start; std::chrono::duration<double>(before - start).count() < seconds;) {
        run();
        const auto after = Clock::now();
        const double rate = work / std::chrono::duration<double>(after - before).count();
        best = rate > best ? rate : best;
        before = after;
    }
    return best;
}

// Keeps what was computed alive without writing it anywhere.
template <class T>
void use(const T& value) {
    asm volatile("" : : "g"(&value) : "memory");
}

// Floating-point operations of products of operands of type O; all stay in registers.
template <class O>
double product_rate(int threads, double seconds) {
    constexpr int chains = 12, steps = 1 << 18;  // more chains than a multiply-add takes cycles on two units
    const double work = 2.0 * kDepths<O> * steps * chains * kWidth<float> * threads;
    return best_rate(work, seconds, [=] {
#pragma omp parallel num_threads(threads)
        {
            Vec<float> sums[chains] = {};
            Vec<O> a{}, b{};
            use(a), use(b);
            for (int i = 0; i < steps; ++i)
#pragma GCC unroll 12
                for (int c = 0; c < chains; ++c) sums[c] = multiply_add<O>(sums[c], a, b);
            use(sums);
        }
    });
}

#if FASTSSL_MATRIX_UNIT && defined(__AVX512BF16__)
// The same by the matrix unit, with as many sums as it has registers for beside two operands for each.
double matrix_unit_rate(int threads, double seconds) {
    constexpr int chains = 4, steps = 1 << 14;
    const double work = 2.0 * kDepths<UnitPair> * kUnit * kUnit * kUnit * chains * steps * threads;
    return best_rate(work, seconds, [=] {
#pragma omp parallel num_threads(threads)
        {
            const MatrixUnit unit;
            for (int i = 0; i < steps; ++i) {
                MatrixUnit::multiply_add<0, 4, 6>(), MatrixUnit::multiply_add<1, 4, 7>();
                MatrixUnit::multiply_add<2, 5, 6>(), MatrixUnit::multiply_add<3, 5, 7>();
            }
        }
    });
}
#else
double matrix_unit_rate(int, double) { return 0; }
#endif

#if defined(__AVX512BF16__)
double pair_rate(int threads, double seconds) { return product_rate<Pair>(threads, seconds); }
#else
double pair_rate(int, double) { return 0; }
#endif

}  // namespace

extern "C" {

// Floating-point operations on float32, two a multiply-add.
double fma_rate(int threads, double seconds) { return product_rate<float>(threads, seconds); }

// The same on bfloat16, summed in float32, in the fastest way: that of float32 where the processor has no such products
// or takes longer for them, and by its matrix unit only if this process may use it.
double bfloat16_rate(int matrix_unit, int threads, double seconds) {
    const double widened = product_rate<float>(threads, seconds), pairs = pair_rate(threads, seconds);
    const double by_unit = matrix_unit != 0 ? matrix_unit_rate(threads, seconds) : 0;
    const double more = widened > pairs ? widened : pairs;
    return more > by_unit ? more : by_unit;
}

// Bytes read and written: each thread copies its half of `memory`, `bytes` in all, onto the other half.
double copy_rate(char* memory, std::int64_t bytes, int threads, double seconds) {
    const std::int64_t share = bytes / 2 / threads / 64 * 64;
    return best_rate(2.0 * static_cast<double>(share * threads), seconds, [=] {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int t = 0; t < threads; ++t) {
            char* mine = memory + 2 * t * share;
            std::memcpy(mine + share, mine, static_cast<std::size_t>(share));
            use(mine);
        }
    });
}

// Bytes read and written: y = y + x in place, a third of them written; x and y are the halves of a thread's part.
double update_rate(char* memory, std::int64_t bytes, int threads, double seconds) {
    const std::int64_t share = bytes / 2 / threads / 64 * 64, count = share / 4;
    return best_rate(3.0 * static_cast<double>(share * threads), seconds, [=] {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int t = 0; t < threads; ++t) {
            float* x = reinterpret_cast<float*>(memory + 2 * t * share);
            float* y = x + count;
            for (std::int64_t i = 0; i + kWidth<float> <= count; i += kWidth<float>)
                store<float>(y + i, load<float>(y + i) * 0.5f + load<float>(x + i));
            use(y);
        }
    });
}

// Bytes read.
double read_rate(const char* memory, std::int64_t bytes, int threads, double seconds) {
    const std::int64_t share = bytes / threads / 512 * 512, count = share / 4;
    return best_rate(static_cast<double>(share * threads), seconds, [=] {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int t = 0; t < threads; ++t) {
            const float* x = reinterpret_cast<const float*>(memory + t * share);
            Vec<float> sums[8] = {};
            for (std::int64_t i = 0; i + 8 * kWidth<float> <= count; i += 8 * kWidth<float>)
#pragma GCC unroll 8
                for (int k = 0; k < 8; ++k) sums[k] += load<float>(x + i + k * kWidth<float>);
            use(sums);
        }
    });
}

// Exponentials of float32 by our own exp, from and to the nearest cache.
double exp_rate(int threads, double seconds) {
    constexpr int count = 2048, rounds = 64;
    return best_rate(static_cast<double>(count) * rounds * threads, seconds, [=] {
#pragma omp parallel num_threads(threads)
        {
            float x[count], y[count];
            for (int i = 0; i < count; ++i) x[i] = -20.0f * static_cast<float>(i) / count;
            for (int round = 0; round < rounds; ++round) {
                for (int i = 0; i < count; i += kWidth<float>) store<float>(y + i, exp<float>(load<float>(x + i)));
                use(y);
            }
        }
    });
}
}
