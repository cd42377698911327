// Pixels as lanes of vectors, and the walk over the pixels of (images, 3, plane) tensors.
#pragma once

#include "../shared/color.h"
#include "dtype.h"
#include "roots.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {

// What ../shared/color.h needs of vectors of pixels. The cube root there takes the last step itself.
template <class T>
struct Roots {
    template <int N>
    static Vec<T> inverse(Vec<T> x) {
        constexpr int steps = (sizeof(T) == 4 ? 2 : 3) - (N == 3);
        return inverse_root<N, T, steps>(x);
    }
    static Vec<T> exponential(Vec<T> x) { return exp<T>(x); }
};

// `count` lanes of `in`, and zeros; `out` is written in `count` lanes.
template <class T, class S>
inline Vec<T> load_some(const S* in, std::int64_t count) {
    T lanes[kWidth<T>];
    if (count >= kWidth<T>)
        for (int i = 0; i < kWidth<T>; ++i) lanes[i] = static_cast<T>(widen(in[i]));
    else
        for (int i = 0; i < kWidth<T>; ++i) lanes[i] = i < count ? static_cast<T>(widen(in[i])) : T(0);
    return load<T>(lanes);
}

template <class T, class S>
inline void store_some(S* out, Vec<T> v, std::int64_t count) {
    T lanes[kWidth<T>];
    store<T>(lanes, v);
    if (count >= kWidth<T>)
        for (int i = 0; i < kWidth<T>; ++i) narrow(lanes[i], out[i]);
    else
        for (std::int64_t i = 0; i < count; ++i) narrow(lanes[i], out[i]);
}

constexpr std::int64_t kPixels = 2048;  // a chunk, which one thread takes

// Calls visit(image, first pixel, pixels) for chunks of every image; chunks do not depend on the number of threads.
template <class Visit>
inline void for_each_chunk(std::int64_t images, std::int64_t plane, int threads, Visit visit) {
    const std::int64_t chunks = (plane + kPixels - 1) / kPixels;
#pragma omp parallel for num_threads(at_most(threads, images * chunks)) schedule(static)
    for (std::int64_t i = 0; i < images * chunks; ++i) {
        const std::int64_t first = i % chunks * kPixels, left = plane - first;
        visit(i / chunks, first, left < kPixels ? left : kPixels);
    }
}

// Applies convert(Vec<T>[3]) to the three channels of every pixel.
template <class T, class S, class Convert>
inline void map_pixels(const S* in, S* out, std::int64_t images, std::int64_t plane, int threads, Convert convert) {
    for_each_chunk(images, plane, threads, [&](std::int64_t image, std::int64_t first, std::int64_t count) {
        const S* from = in + image * 3 * plane + first;
        S* to = out + image * 3 * plane + first;
        for (std::int64_t i = 0; i < count; i += kWidth<T>) {
            Vec<T> channels[3];
            for (int c = 0; c < 3; ++c) channels[c] = load_some<T>(from + c * plane + i, count - i);
            convert(channels);
            for (int c = 0; c < 3; ++c) store_some<T>(to + c * plane + i, channels[c], count - i);
        }
    });
}

}  // namespace fastssl::FASTSSL_ISA
