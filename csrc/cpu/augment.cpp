// One view of each image of a batch: crop, antialiased resize, flip, quarter turns, colour jitter, grayscale, Gaussian
// blur, solarize, normalise, cast (torchvision's v2 functions; SimCLR, arXiv:2002.05709, appendix A).
//
// A view is one task, in working memory of its thread that fits the second cache. Flip and turns only change how the crop
// is read. Rows are resized in height straight from the bytes, in groups, then in width (resample.h); each goes through
// the steps of colour while it is in the first cache. Contrast needs the mean of the whole view, so what follows it is a
// second pass, over planes that were kept; so is the blur, whose columns and rows go straight to the last step. Without
// either of them nothing is kept but a group of rows. Values are in [0, 255] until the last step; all in float, the mean
// in double over rows. Bytes moved: those of the crop, read; the view, written.
// Reference and tests: fastssl/ops/augment.py, tests/ops/test_augment.py.
#include "augment.h"

#include <math.h>

#include "buffer.h"
#include "jitter.h"
#include "pages.h"
#include "resample.h"
#include "stream.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

std::int64_t round_up(std::int64_t x, std::int64_t step) { return (x + step - 1) / step * step; }

// What all views of a call share.
struct Form {
    std::int64_t size;
    bool bicubic, channels_last, past_caches;
    DType dtype;
    float scale[3], bias[3];
    void* out;

    std::int64_t row() const { return round_up(size, kWidth<float>); }
    std::int64_t padded() const { return round_up(size, 4); }
    std::int64_t rows() const { return round_up(size, kLanes); }
    std::int64_t plane() const { return rows() * row(); }
    std::int64_t radius() const { return blur_radius(size); }
    std::int64_t blurred_room() const { return row() + 2 * radius() + kWidth<float>; }
};

// The largest of a call, in numbers.
struct Room {
    std::int64_t line = 0, row_weights = 0, column_weights = 0, copied = 0;

    static Room of(const Batch& batch, const Form& form, std::int64_t n) {
        Room most;
        for (std::int64_t i = 0; i < n; ++i) {
            Sample sample;
            batch.read(i, sample);
            const Crop& crop = sample.crop;
            raise(most.line, crop.width + kWidth<float>);
            raise(most.row_weights, form.size * most_taps(crop.height, form.size, form.bicubic));
            raise(most.column_weights, form.padded() * most_taps(crop.width, form.size, form.bicubic));
            if (!crop.interleaved() && crop.column_step != 1) raise(most.copied, 3 * crop.height * crop.width);
        }
        return most;
    }
    static void raise(std::int64_t& most, std::int64_t x) {
        if (x > most) most = x;
    }
};

// Memory of one thread.
struct Workspace {
    float *row_weights, *column_weights, *line, *pixels, *planes, *kernel, *blurred, *out;
    std::int64_t *row_first, *column_first, *starts;
    std::uint8_t* copied;

    static std::int64_t floats(const Room& room, const Form& form) {
        return Workspace{}.place(nullptr, room, form);
    }
    static std::int64_t integers(const Form& form) {
        return round_up(form.size + form.padded() + 2 * form.radius() + 1, 8);
    }

    // Parts on whole cache lines; returns how many numbers they are.
    std::int64_t place(float* memory, const Room& room, const Form& form) {
        std::int64_t used = 0;
        const auto take = [&](float*& part, std::int64_t count) {
            if (memory != nullptr) part = memory + used;
            used += round_up(count, 16);
        };
        take(row_weights, room.row_weights);
        take(column_weights, room.column_weights);
        take(line, 3 * room.line);
        take(pixels, room.line * kWidth<float>);
        take(planes, 3 * form.plane());
        take(kernel, 2 * form.radius() + 1);
        take(blurred, form.blurred_room());
        take(out, 3 * form.row());
        return used;
    }
};

// A crop whose pixels lie neither as triples nor as planes, copied to triples.
Crop gathered(const Crop& crop, std::uint8_t* to) {
    for (std::int64_t y = 0; y < crop.height; ++y)
        for (std::int64_t x = 0; x < crop.width; ++x) {
            const std::uint8_t* from = crop.pixels + y * crop.row_step + x * crop.column_step;
            for (std::int64_t c = 0; c < 3; ++c) to[3 * (y * crop.width + x) + c] = from[c * crop.channel_step];
        }
    return {to, crop.height, crop.width, 1, 3 * crop.width, 3};
}

// Normalises and writes row y of view i; the three rows are `plane` apart.
void write_view_row(const Form& form, const Sample& sample, std::int64_t i, std::int64_t y, const float* row,
                    std::int64_t plane, float* normalized) {
    const std::int64_t width = form.row(), size = form.size;
    for (int c = 0; c < 3; ++c)
        for (std::int64_t x = 0; x < width; x += kWidth<float>) {
            Vec<float> v = load<float>(row + c * plane + x);
            if (sample.solarize) v = solarized(v);
            store<float>(normalized + c * width + x, v * form.scale[c] + form.bias[c]);
        }
    with_type(form.dtype, [&](auto type) {
        using S = decltype(type);
        S* view = static_cast<S*>(form.out) + i * 3 * size * size;
        if (!form.channels_last) {
            for (int c = 0; c < 3; ++c)
                write_row(view + (c * size + y) * size, normalized + c * width, size, form.past_caches);
        } else {
            S* to = view + y * size * 3;
#pragma GCC ivdep
            for (std::int64_t x = 0; x < size; ++x)
                for (int c = 0; c < 3; ++c) narrow(normalized[c * width + x], to[3 * x + c]);
        }
    });
}

// The taps of a Gaussian, all that float can tell from 0 beside the largest, at most `radius` to each side: returns how
// many to each side there are.
std::int64_t make_kernel(float sigma, std::int64_t radius, float* kernel) {
    const double sharpness = 1.0 / sigma;
    const std::int64_t taps = blur_reach(sigma, radius);
    const auto gaussian = [=](std::int64_t k) { return ::exp(-0.5 * (k * sharpness) * (k * sharpness)); };
    double total = 0;
    for (std::int64_t k = -taps; k <= taps; ++k) total += gaussian(k);
    for (std::int64_t k = -taps; k <= taps; ++k) kernel[k + taps] = static_cast<float>(gaussian(k) / total);
    return taps;
}

// out[x] = sum over k < taps of kernel[k] * from(k)[x], for N vectors.
template <int N, class From>
void weighted_sum(const float* kernel, std::int64_t taps, From from, float* out) {
    Vec<float> total[N] = {};
    for (std::int64_t k = 0; k < taps; ++k) {
        const float* in = from(k);
        const Vec<float> weight = broadcast<float>(kernel[k]);
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) total[j] += load<float>(in + j * kWidth<float>) * weight;
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store<float>(out + j * kWidth<float>, total[j]);
}

// The same for a row of whole vectors, four at a time.
template <class From>
void weighted_row(const float* kernel, std::int64_t taps, std::int64_t row, From from, float* out) {
    std::int64_t x = 0;
    const auto shifted = [&](std::int64_t k) { return from(k) + x; };
    for (; x + 4 * kWidth<float> <= row; x += 4 * kWidth<float>) weighted_sum<4>(kernel, taps, shifted, out + x);
    for (; x < row; x += kWidth<float>) weighted_sum<1>(kernel, taps, shifted, out + x);
}

// A row of the blurred plane, of those that begin at starts[k]: columns into `line`, whose ends are then mirrored, and
// along it.
void blur_row(const float* plane, const std::int64_t* starts, std::int64_t row, std::int64_t size, const float* kernel,
              std::int64_t radius, float* line, float* out) {
    const std::int64_t taps = 2 * radius + 1;
    float* middle = line + radius;
    weighted_row(kernel, taps, row, [=](std::int64_t k) { return plane + starts[k]; }, middle);
    for (std::int64_t k = 1; k <= radius; ++k) {
        middle[-k] = middle[k];
        middle[size - 1 + k] = middle[size - 1 - k];
    }
    weighted_row(kernel, taps, row, [=](std::int64_t k) { return line + k; }, out);
}

// View i, from its crop to memory.
void make_view(const Form& form, const Sample& sample, std::int64_t i, const Workspace& w) {
    const std::int64_t size = form.size, row = form.row(), plane = form.plane(), padded = form.padded();
    const Crop& crop = sample.crop;
    const Line rows = make_line(crop.height, size, size, form.bicubic, sample.reversed_rows, w.row_first, w.row_weights);
    const Line columns =
        make_line(crop.width, size, padded, form.bicubic, sample.reversed_columns, w.column_first, w.column_weights);
    const int first_steps = sample.before_contrast();
    const bool contrast = first_steps < sample.steps, blur = sample.sigma > 0.0f, keep = contrast || blur;
    double total = 0;
    const auto finish = [&](std::int64_t y, float* line, int from, int to, float mean) {
        for (int k = from; k < to; ++k) jitter_row(sample.step[k], sample.factor[k], mean, line, plane, row);
        if (to < sample.steps) return;
        if (sample.gray) drop_colour(line, plane, row);
        if (!blur) write_view_row(form, sample, i, y, line, plane, w.out);
    };
    for (std::int64_t y = 0; y < size; y += kLanes) {
        const std::int64_t count = size - y < kLanes ? size - y : kLanes;
        float* group = w.planes + (keep ? y * row : 0);
        blend_to_pixels(crop, rows, y, count, crop.width + kWidth<float>, w.line, w.pixels);
        to_planes(w.pixels, columns, padded, row, plane, group);
        for (std::int64_t r = 0; r < count; ++r) {
            float* line = group + r * row;
            for (int c = 0; c < 3; ++c)
                for (std::int64_t x = padded; x < row; ++x) line[c * plane + x] = 0.0f;  // adds nothing to the mean
            if (form.bicubic) clamp_row(line, plane, row);
            finish(y + r, line, 0, first_steps, 0.0f);
            if (contrast) total += sum_luma(line, plane, row);
        }
    }
    if (contrast) {
        const float mean = static_cast<float>(total / static_cast<double>(size * size));
        for (std::int64_t y = 0; y < size; ++y) finish(y, w.planes + y * row, first_steps, sample.steps, mean);
    }
    if (!blur) return;
    const std::int64_t radius = make_kernel(sample.sigma, form.radius(), w.kernel);
    for (std::int64_t y = 0; y < size; ++y) {
        for (std::int64_t k = 0; k <= 2 * radius; ++k) w.starts[k] = mirrored(y + k - radius, size) * row;
        for (int c = 0; c < 3; ++c)
            blur_row(w.planes + c * plane, w.starts, row, size, w.kernel, radius, w.blurred, w.out + c * row);
        write_view_row(form, sample, i, y, w.out, row, w.out);
    }
}

}  // namespace

void augment(const std::uint8_t* images, const std::int64_t* places, std::int64_t n, std::int64_t image_step,
             std::int64_t channel_step, std::int64_t row_step, std::int64_t column_step, const std::int64_t* crop,
             const bool* flip, const std::int64_t* rot90, const std::int64_t* order, const float* factors,
             const bool* gray, const float* sigma, const bool* solarize, std::int64_t size, const float* normalization,
             bool bicubic, DType dtype, bool channels_last, void* out, int most_threads) {
    const Batch batch{images, places, image_step, channel_step, row_step, column_step, crop,
                      flip,   rot90,  order,      factors,      gray,     sigma,       solarize};
    Form form{size, bicubic, channels_last, false, dtype, {}, {}, out};
    for (int c = 0; c < 3; ++c) {
        form.scale[c] = normalization[c];
        form.bias[c] = normalization[3 + c];
    }
    const int threads = at_most(for_elements(most_threads, n * 3 * size * size), n);
    const std::int64_t bytes = dtype == DType::f32 ? 4 : 2;
    form.past_caches = !channels_last && back_for_streaming(out, n * 3 * size * size * bytes, threads);
    const Room room = Room::of(batch, form, n);
    const std::int64_t floats = Workspace::floats(room, form), integers = Workspace::integers(form);
    const std::int64_t copied = round_up(room.copied, 64);
    const Buffer<float> memory(floats * threads);
    const Buffer<std::int64_t> firsts(integers * threads);
    const Buffer<std::uint8_t> copies(copied * threads);
    // Views take different times; which thread has which changes no bit.
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (std::int64_t i = 0; i < n; ++i) {
        const int thread = thread_index();
        Workspace w;
        w.place(memory.get() + thread * floats, room, form);
        w.row_first = firsts.get() + thread * integers;
        w.column_first = w.row_first + size;
        w.starts = w.column_first + form.padded();
        w.copied = copies.get() + thread * copied;
        Sample sample;
        batch.read(i, sample);
        if (!sample.crop.interleaved() && sample.crop.column_step != 1) sample.crop = gathered(sample.crop, w.copied);
        make_view(form, sample, i, w);
        stream_fence();
    }
}

}  // namespace fastssl::FASTSSL_ISA
