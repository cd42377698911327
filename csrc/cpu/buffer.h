// Working memory, aligned to a cache line and given back at the end of the scope, for the next call to use (pages.h).
#pragma once

#include <cstdint>
#include <new>

#include "isa.h"
#include "pages.h"

namespace fastssl::FASTSSL_ISA {

template <class T>
class Buffer {
public:
    explicit Buffer(std::int64_t count)
        : bytes_(count * static_cast<std::int64_t>(sizeof(T))), data_(static_cast<T*>(borrow(&bytes_))) {
        if (data_ == nullptr && count > 0) throw std::bad_alloc();
    }
    ~Buffer() { give_back(data_, bytes_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }

private:
    std::int64_t bytes_;  // at least what was asked for
    T* data_;
};

}  // namespace fastssl::FASTSSL_ISA
