// Working memory, aligned to a cache line and given back at the end of the scope.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "isa.h"

namespace fastssl::FASTSSL_ISA {

template <class T>
class Buffer {
public:
    explicit Buffer(std::int64_t count)
        : data_(static_cast<T*>(std::aligned_alloc(64, (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64))) {
        if (data_ == nullptr && count > 0) throw std::bad_alloc();
    }
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }

private:
    T* data_;
};

}  // namespace fastssl::FASTSSL_ISA
