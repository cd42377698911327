#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if FASTSSL_MATRIX_UNIT && !defined(__SANITIZE_ADDRESS__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <stdexcept>
#include <string>

namespace fastssl {

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows it.
static bool multiplies_bfloat16() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 5 & 1) != 0;
}
#endif

#if FASTSSL_MATRIX_UNIT && !defined(__SANITIZE_ADDRESS__)
// Linux gives the matrix unit, whose registers make each thread's state larger, to processes that ask for it.
static bool may_use_matrix_unit() {
    constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kBf16) == 0 || (edx & kTiles) == 0) return false;
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#elif defined(__x86_64__)
static bool may_use_matrix_unit() { return FASTSSL_MATRIX_UNIT != 0; }
#endif

static Isa best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return !multiplies_bfloat16() ? Isa::avx512 : may_use_matrix_unit() ? Isa::amx : Isa::avx512bf16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::baseline;
}

Isa supported_isa() {
    static const Isa best = best_isa();
    return best;
}

// Intel's processors take twice as long for a product of pairs of bfloat16 as for one of floats, AMD's the same time.
static Isa fastest_isa() {
#if defined(__x86_64__)
    if (supported_isa() == Isa::avx512bf16 && __builtin_cpu_is("intel")) return Isa::avx512;
#endif
    return supported_isa();
}

static std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{fastest_isa()};
    return isa;
}

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
    if (static_cast<int>(isa) > static_cast<int>(supported_isa()))
        throw std::invalid_argument(std::string("this processor cannot run ") + isa_name(isa) + "; its best is " +
                                    isa_name(supported_isa()));
    chosen().store(isa, std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::amx: return "amx";
        case Isa::avx512bf16: return "avx512bf16";
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        default: return "baseline";
    }
}

void throw_too_many(const char* most, std::int64_t got) {
    throw std::length_error(std::string(most) + "; got " + std::to_string(got));
}

}  // namespace fastssl
