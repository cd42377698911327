// How work is shared by OpenMP's threads.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <cstdint>

#include "isa.h"

namespace fastssl::FASTSSL_ISA {

inline int thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// `threads`, or as many as there are tasks, at least one: to wake another costs microseconds, and much more on a busy
// machine, and none would mean as many as OpenMP likes.
inline int at_most(int threads, std::int64_t tasks) {
    return tasks >= threads ? threads : tasks > 1 ? static_cast<int>(tasks) : 1;
}

// Threads for so many elements that are cheap to compute.
inline int for_elements(int threads, std::int64_t elements) { return at_most(threads, elements / 32768 + 1); }

}  // namespace fastssl::FASTSSL_ISA
