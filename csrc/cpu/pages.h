// Memory pages under large outputs.
#pragma once

#include <cstdint>

namespace fastssl {

// Whether to write this output with stores that go past the caches (stream.h), after having it backed by memory.
//
// Large blocks come fresh from the system at every call. Its first write to each 4 KB page then costs an interruption,
// together more than the writing itself, and leaves the zeroed page in the cache, where stores past it are slow. So
// pages of 2 MB are asked for and all are touched here, by all threads. False for outputs that are small enough for
// their reader to find them in the cache, and where the system cannot do this.
bool back_for_streaming(void* data, std::int64_t bytes, int threads);

}  // namespace fastssl
