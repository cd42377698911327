// One source, several instruction sets.
//
// CMake compiles the kernels once for each instruction set with FASTSSL_ISA set to its name, which becomes the
// namespace of everything in them. FASTSSL_KERNEL declares a kernel in all of these namespaces; `select` (isa.cpp)
// takes the one the processor can run. The products' kernels alone are compiled for avx512bf16 too, and chosen by
// FASTSSL_SELECT_BF16: the others gain nothing from it. Kernels use no inline function of the standard library: the linker
// keeps one copy of such a function for all objects, and might keep the copy that needs the newest processor.
#pragma once

#include <cstdint>

#ifndef FASTSSL_ISA
#define FASTSSL_ISA baseline
#endif

// Whether the assembler, which is as old as the compiler, knows the matrix unit, and whom to ask for the use of it.
// Address sanitizers do not see what it reads: there, and so on any processor with pairs, loops compute the same.
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define FASTSSL_MATRIX_UNIT 1
#else
#define FASTSSL_MATRIX_UNIT 0
#endif

#if defined(__x86_64__)
#define FASTSSL_KERNEL(declaration)      \
    namespace fastssl::baseline {        \
    declaration;                         \
    }                                    \
    namespace fastssl::avx2 {            \
    declaration;                         \
    }                                    \
    namespace fastssl::avx512 {          \
    declaration;                         \
    }                                    \
    namespace fastssl::avx512bf16 {      \
    declaration;                         \
    }
#define FASTSSL_SELECT(kernel) \
    ::fastssl::select(&::fastssl::baseline::kernel, &::fastssl::avx2::kernel, &::fastssl::avx512::kernel)
#define FASTSSL_SELECT_BF16(kernel)                                                                         \
    ::fastssl::select(&::fastssl::baseline::kernel, &::fastssl::avx2::kernel, &::fastssl::avx512::kernel, \
                      &::fastssl::avx512bf16::kernel)
#else
#define FASTSSL_KERNEL(declaration) \
    namespace fastssl::baseline {   \
    declaration;                    \
    }
#define FASTSSL_SELECT(kernel) ::fastssl::select(&::fastssl::baseline::kernel)
#define FASTSSL_SELECT_BF16(kernel) FASTSSL_SELECT(kernel)
#endif

namespace fastssl {

// amx: the kernels for avx512bf16, which multiply rows of bfloat16 by the processor's matrix unit (matrix_unit.h), and
// rows of float in parts.
enum class Isa { baseline, avx2, avx512, avx512bf16, amx };

Isa supported_isa();             // the best this processor and this build can run
Isa current_isa();               // the one in use: the fastest of these, unless set_isa chose another
void set_isa(Isa isa);           // throws std::invalid_argument if the processor cannot run it
const char* isa_name(Isa isa);

// Throws std::length_error of both; here, because kernels may use nothing that makes its text.
[[noreturn]] void throw_too_many(const char* most, std::int64_t got);

template <class F>
F select(F baseline, [[maybe_unused]] F avx2 = nullptr, [[maybe_unused]] F avx512 = nullptr, F avx512bf16 = nullptr) {
    switch (current_isa()) {
        case Isa::amx:
        case Isa::avx512bf16: return avx512bf16 != nullptr ? avx512bf16 : avx512;
        case Isa::avx512: return avx512;
        case Isa::avx2: return avx2;
        default: return baseline;
    }
}

}  // namespace fastssl
