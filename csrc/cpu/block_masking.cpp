// Masks of rectangular blocks (BEiT, Bao et al. 2021, arXiv:2106.08254, algorithm 1), filled up to an exact count.
//
// Of each attempt, with what is left to mask and four numbers u in [0, 1):
//   area in [min(min_block, left), min(max_block, left)]   rows = round(sqrt(area ratio))   columns = round(sqrt(area / ratio))
// and the block is taken if it fits into the grid and adds no more than is left. A row of patches is a row of bits, so
// counting what a block adds takes an instruction or two a row. What is left in the end goes to the free patches
// of least noise: the greatest key among them is found bit by bit from the highest, so nothing is sorted.
// Every choice is one product and one rounding towards zero, and no product is added to: the reference's bits.
// Samples are shared by the threads.
// Reference and tests: fastssl/ops/block_masking.py, tests/ops/test_block_masking.py.
#include "block_masking.h"

#include "buffer.h"
#include "noise_order.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

using Bits = std::uint64_t;
constexpr std::int64_t kWordBits = 64;

struct Grid {
    std::int64_t height, width;
    std::int64_t words() const { return (width + kWordBits - 1) / kWordBits; }  // of a row
    std::int64_t patches() const { return height * width; }
};

struct Block {
    std::int64_t top, left, rows, columns;
};

// What the blocks of a call have in common.
struct Shapes {
    const double* aspect;
    std::int64_t ratios, min_block, max_block;
};

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// Which of `count` equal parts of [0, 1) u is in, the nearest one if outside; NaN is in the first. Of more than 2^24
// parts, float knows the last as the one after it.
std::int64_t chosen(float u, std::int64_t count) {
    const float part = u * static_cast<float>(count), last = static_cast<float>(count - 1);
    return least(static_cast<std::int64_t>(part > 0 ? (part < last ? part : last) : 0.0f), count - 1);
}

std::int64_t side(double square) { return most(1, static_cast<std::int64_t>(__builtin_sqrt(square) + 0.5)); }

// The block that four numbers choose; false if the grid is too small for it.
bool draw(const float* u, std::int64_t left, const Shapes& shapes, const Grid& grid, Block& block) {
    const std::int64_t low = least(left, shapes.min_block), high = least(left, shapes.max_block);
    const double area = static_cast<double>(low + chosen(u[0], high - low + 1));
    const double ratio = shapes.aspect[chosen(u[1], shapes.ratios)];
    block.rows = side(area * ratio);
    block.columns = side(area / ratio);
    if (block.rows > grid.height || block.columns > grid.width) return false;
    block.top = chosen(u[2], grid.height - block.rows + 1);
    block.left = chosen(u[3], grid.width - block.columns + 1);
    return true;
}

// The columns of a block that are in one word of a row.
Bits columns_in(const Block& block, std::int64_t word) {
    const std::int64_t first = most(block.left - word * kWordBits, 0);
    const std::int64_t end = least(block.left + block.columns - word * kWordBits, kWordBits);
    return first < end ? ~Bits{0} >> (kWordBits - (end - first)) << first : 0;
}

std::int64_t added(const Bits* mask, const Block& block, const Grid& grid) {
    std::int64_t count = 0;
    for (std::int64_t word = 0; word < grid.words(); ++word) {
        const Bits columns = columns_in(block, word);
        for (std::int64_t row = block.top; columns != 0 && row < block.top + block.rows; ++row)
            count += __builtin_popcountll(columns & ~mask[row * grid.words() + word]);
    }
    return count;
}

void add(Bits* mask, const Block& block, const Grid& grid) {
    for (std::int64_t word = 0; word < grid.words(); ++word) {
        const Bits columns = columns_in(block, word);
        for (std::int64_t row = block.top; row < block.top + block.rows; ++row)
            mask[row * grid.words() + word] |= columns;
    }
}

// Draws blocks into `mask`, which is empty; the patches that are left to mask.
std::int64_t mask_blocks(const float* noise, std::int64_t attempts, std::int64_t left, const Shapes& shapes,
                         const Grid& grid, Bits* mask) {
    for (std::int64_t attempt = 0; attempt < attempts && left > 0; ++attempt) {
        Block block;
        if (!draw(noise + 4 * attempt, left, shapes, grid, block)) continue;
        const std::int64_t more = added(mask, block, grid);
        if (more > left) continue;
        add(mask, block, grid);
        left -= more;
    }
    return left;
}

// Masks the `left` free patches of least noise, of equal ones the first. left > 0.
void fill(const float* noise, std::int64_t left, const Grid& grid, std::uint32_t* keys, bool* mask) {
    const std::int64_t patches = grid.patches();
    std::int64_t free = 0;
    for (std::int64_t i = 0; i < patches; ++i)
        if (!mask[i]) keys[free++] = sort_key(noise[i]);
    std::uint32_t greatest = 0;  // of the keys to mask
    for (int bit = 31; bit >= 0; --bit) {
        std::int64_t without = 0;
        for (std::int64_t i = 0; i < free; ++i) without += keys[i] >> bit == greatest >> bit;
        if (without >= left) continue;
        left -= without;
        greatest |= std::uint32_t{1} << bit;
    }
    for (std::int64_t i = 0; i < patches; ++i) {
        if (mask[i]) continue;
        const std::uint32_t key = sort_key(noise[i]);
        mask[i] = key < greatest || (key == greatest && left-- > 0);
    }
}

}  // namespace

void block_masking(const float* noise, const std::int64_t* counts, const double* aspect, std::int64_t batch,
                   std::int64_t height, std::int64_t width, std::int64_t attempts, std::int64_t min_block,
                   std::int64_t max_block, std::int64_t ratios, bool* mask, int threads) {
    const Grid grid{height, width};
    const Shapes shapes{aspect, ratios, min_block, max_block};
    const std::int64_t patches = grid.patches(), words = height * grid.words();
    const int shares = for_elements(threads, batch * (32 * attempts + 4 * patches));  // each is looked at some times
    const Buffer<Bits> bits(words * shares);
    const Buffer<std::uint32_t> keys(patches * shares);
#pragma omp parallel for num_threads(shares) schedule(static, 1)
    for (std::int64_t share = 0; share < shares; ++share) {
        Bits* own = bits.get() + words * share;
        for (std::int64_t b = batch * share / shares; b < batch * (share + 1) / shares; ++b) {
            const float* drawn = noise + b * (4 * attempts + patches);
            bool* out = mask + b * patches;
            for (std::int64_t i = 0; i < words; ++i) own[i] = 0;
            const std::int64_t left = mask_blocks(drawn, attempts, counts[b], shapes, grid, own);
            for (std::int64_t y = 0; y < height; ++y)
                for (std::int64_t x = 0; x < width; ++x)
                    out[y * width + x] = (own[y * grid.words() + x / kWordBits] >> (x % kWordBits) & 1) != 0;
            if (left > 0) fill(drawn + 4 * attempts, left, grid, keys.get() + patches * share, out);
        }
    }
}

}  // namespace fastssl::FASTSSL_ISA
