// Cuts tiles from the cells of a grid, in any order, and normalises each (Noroozi and Favaro 2016, arXiv:1603.09246,
// section 4.2; Doersch et al. 2015, arXiv:1505.05192).
//
//   out = (x - mean) / sqrt(variance + kEpsilon), for each channel of a tile by itself
//
// A channel of a tile is read from memory once, widened into the nearest cache, and written once; without normalisation
// its rows are copied. Sums in float (double for f64), in lanes. Bytes moved: what is taken, read and written.
// Reference and tests: fastssl/ops/tiles.py, tests/ops/test_tiles.py.
#include "tiles.h"

#include <math.h>

#include <cstring>

#include "buffer.h"
#include "pages.h"
#include "simd.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr double kEpsilon = 1e-5;  // torch.nn.functional.instance_norm's

struct Sizes {
    std::int64_t n, channels, image_height, image_width, count, rows, columns, height, width;

    std::int64_t area() const { return height * width; }
    std::int64_t plane() const { return image_height * image_width; }
};

// The first pixel of a tile in its image, which is divided into cells of equal size; what is left over lies around them.
std::int64_t corner(const Sizes& s, std::int64_t cell, const std::int64_t* offset) {
    const std::int64_t cell_height = s.image_height / s.rows, cell_width = s.image_width / s.columns;
    const std::int64_t top = (s.image_height - s.rows * cell_height) / 2 + cell / s.columns * cell_height;
    const std::int64_t left = (s.image_width - s.columns * cell_width) / 2 + cell % s.columns * cell_width;
    const std::int64_t down = offset != nullptr ? offset[0] : (cell_height - s.height) / 2;
    const std::int64_t right = offset != nullptr ? offset[1] : (cell_width - s.width) / 2;
    return (top + down) * s.image_width + left + right;
}

// The sum of a term of each vector, in double but for runs too short to lose anything.
template <class T, class Term>
double total(std::int64_t padded, Term term) {
    constexpr std::int64_t run = 64 * kWidth<T>;
    double total = 0;
    for (std::int64_t start = 0; start < padded; start += run) {
        const std::int64_t end = padded - start < run ? padded : start + run;
        Vec<T> sums = {};
        for (std::int64_t k = start; k < end; k += kWidth<T>) sums += term(k);
        total += static_cast<double>(sum<T>(sums));
    }
    return total;
}

// values (area) to mean 0 and variance 1; there is room for whole vectors.
template <class T>
void standardize(T* values, std::int64_t area) {
    const std::int64_t padded = (area + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
    for (std::int64_t k = area; k < padded; ++k) values[k] = T(0);
    const double sum_of_all = total<T>(padded, [=](std::int64_t k) { return load<T>(values + k); });
    const T mean = static_cast<T>(sum_of_all / static_cast<double>(area));
    for (std::int64_t k = area; k < padded; ++k) values[k] = mean;
    const double squares = total<T>(padded, [=](std::int64_t k) {
        const Vec<T> centred = load<T>(values + k) - mean;
        store<T>(values + k, centred);
        return centred * centred;
    });
    const double variance = squares / static_cast<double>(area);
    const T scale = static_cast<T>(1.0 / ::sqrt(variance + kEpsilon));
    for (std::int64_t k = 0; k < padded; k += kWidth<T>) store<T>(values + k, load<T>(values + k) * scale);
}

template <class T, class S>
void write_standardized(const S* in, const Sizes& s, T* values, S* out) {
    for (std::int64_t y = 0; y < s.height; ++y) {
        const S* row = in + y * s.image_width;
        T* to = values + y * s.width;
#pragma GCC ivdep
        for (std::int64_t x = 0; x < s.width; ++x) to[x] = static_cast<T>(widen(row[x]));
    }
    const std::int64_t area = s.area();
    standardize(values, area);
#pragma GCC ivdep
    for (std::int64_t k = 0; k < area; ++k) narrow(values[k], out[k]);
}

template <class T, class S>
void cut(const S* images, const std::int64_t* order, const std::int64_t* offsets, const Sizes& s, bool normalize,
         S* out, int most_threads) {
    const std::int64_t taken = s.n * s.count, tile_elements = s.channels * s.area();
    const int threads = for_elements(most_threads, taken * tile_elements);
    const std::int64_t room = normalize ? s.area() + kWidth<T> : 0;
    const Buffer<T> memory(room * threads);
    prefer_huge_pages(out, taken * tile_elements * static_cast<std::int64_t>(sizeof(S)));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < taken; ++i) {
        const std::int64_t image = i / s.count, cell = order[i];
        const std::int64_t* offset = offsets != nullptr ? offsets + (image * s.rows * s.columns + cell) * 2 : nullptr;
        const S* in = images + image * s.channels * s.plane() + corner(s, cell, offset);
        for (std::int64_t c = 0; c < s.channels; ++c) {
            const S* from = in + c * s.plane();
            S* to = out + i * tile_elements + c * s.area();
            if (normalize)
                write_standardized<T>(from, s, memory.get() + thread_index() * room, to);
            else
                for (std::int64_t y = 0; y < s.height; ++y)
                    std::memcpy(to + y * s.width, from + y * s.image_width, static_cast<std::size_t>(s.width) * sizeof(S));
        }
    }
}

}  // namespace

void tiles(const void* images, const std::int64_t* order, const std::int64_t* offsets, std::int64_t n,
           std::int64_t channels, std::int64_t image_height, std::int64_t image_width, std::int64_t count,
           std::int64_t rows, std::int64_t columns, std::int64_t height, std::int64_t width, DType dtype,
           bool normalize, void* out, int threads) {
    const Sizes sizes{n, channels, image_height, image_width, count, rows, columns, height, width};
    with_type(dtype, [&](auto type) {
        using S = decltype(type);
        cut<decltype(widen(type))>(static_cast<const S*>(images), order, offsets, sizes, normalize,
                                   static_cast<S*>(out), threads);
    });
}

}  // namespace fastssl::FASTSSL_ISA
