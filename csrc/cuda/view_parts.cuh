// How a view is cut into parts, one to a block of threads, and what of shared memory a part takes.
#pragma once

#include "../shared/views.h"
#include "augment.h"
#include "reduce.cuh"

namespace fastssl::cuda {
namespace {  // as what it is made of

constexpr int kThreads = 256, kRows = kThreads / kWarp;  // a warp makes a row
constexpr int kResident = 4;                             // blocks a processor: unasked, ptxas spills to have more
constexpr int kWidest = 64, kLongest = 128;              // of a part
constexpr int kRun = kRows, kStep = 4;                   // blur: outputs of a thread, taps at a time
constexpr std::size_t kShared = 47 * 1024;  // of the 48 KB that every GPU gives without being asked; the rest is static

// The pixels of the crop that make one row or column of the view: `count` from `first` on, of which the k-th weighs
// share * filter(offset + k * shrink).
struct Taps {
    std::int64_t first;
    int count;
    float offset, shrink, share;
};

// How a view is cut into parts, one to a block, and what of shared memory they take. Those at the end may be smaller.
struct Cut {
    int size, radius, width, height;

    constexpr explicit Cut(int size)
        : size(size), radius(static_cast<int>(blur_radius(size))), width(kRun), height(size) {
        while (width < size && width < kWidest) width *= 2;
        const int segments = (size + kLongest - 1) / kLongest;
        height = ((size + segments - 1) / segments + kRows - 1) / kRows * kRows;
        while (width > kRun && bytes() > kShared) width /= 2;
    }

    __host__ __device__ constexpr int strips() const { return (size + width - 1) / width; }
    __host__ __device__ constexpr int parts() const { return strips() * ((size + height - 1) / height); }
    // rows of pixels before the blur, and after its half: odd, so that lanes that read down them meet no bank twice
    __host__ __device__ constexpr int pitch() const { return (width + 2 * radius + kStep - 1) | 1; }
    __host__ __device__ constexpr int ring_pitch() const { return width + 1; }
    __host__ __device__ constexpr int columns() const { return width + 2 * radius; }
    __host__ __device__ constexpr int rows() const { return height + 2 * radius; }
    __host__ __device__ constexpr int kernel() const { return 2 * radius + 1 + kStep; }
    __host__ __device__ constexpr int raw() const { return 3 * kRows * pitch(); }
    __host__ __device__ constexpr int ring() const { return 3 * (2 * radius + kRows) * ring_pitch(); }
    __host__ __device__ constexpr std::size_t tap_bytes() const { return sizeof(Taps) * (columns() + rows()); }
    __host__ __device__ constexpr std::size_t bytes() const {
        return tap_bytes() + sizeof(float) * (kernel() + raw() + ring());
    }
};
static_assert(Cut(kAugmentLargest).bytes() <= kShared && Cut(kAugmentLargest + 1).bytes() > kShared, "the largest");

// What all views of a call share. `height` and `width` of equal images, or `bytes` of packed ones.
struct Form {
    Cut cut;
    std::int64_t height, width, bytes;
    bool bicubic, channels_last, packs;  // packs: rows of the view are whole packs on 16 bytes
    float scale[3], bias[3];
};

// A block's part of a view: `rows` x `columns` of it from (y, x) on.
struct Part {
    std::int64_t image;
    int y, x, rows, columns;

    __device__ Part(const Cut& cut, unsigned block) {
        const unsigned parts = cut.parts(), part = block % parts;
        image = block / parts;
        y = static_cast<int>(part / cut.strips()) * cut.height;
        x = static_cast<int>(part % cut.strips()) * cut.width;
        rows = min(cut.height, cut.size - y);
        columns = min(cut.width, cut.size - x);
    }
};

// The memory of a block. A pixel's channels are planes of kRows, or of the ring's rows.
struct Workspace {
    Taps *columns, *rows;
    float *kernel, *raw, *ring;

    __device__ explicit Workspace(const Cut& cut) {
        columns = dynamic_shared<Taps>();
        rows = columns + cut.columns();
        kernel = reinterpret_cast<float*>(rows + cut.rows());
        raw = kernel + cut.kernel();
        ring = raw + cut.raw();
        for (int k = threadIdx.x; k < cut.raw() + cut.ring(); k += kThreads) raw[k] = 0.0f;  // finite: see blur_run
    }
};

}  // namespace
}  // namespace fastssl::cuda
