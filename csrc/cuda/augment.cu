// One view of each image of a batch: crop, antialiased resize, flip, quarter turns, colour jitter, grayscale, Gaussian
// blur, solarize, normalise, cast (torchvision's v2 functions; SimCLR, arXiv:2002.05709, appendix A). The formulas are
// in csrc/shared/views.h.
//
// Two launches, and nothing but a number a block between them: a pixel is made from the crop's bytes by one function
// (`make_pixel`) wherever it is needed, again where two blocks need it, for that is reckoned to cost less than pixels in
// memory. First, of views whose contrast changes, the sum of their lumas. Then the views: a block takes a strip of at most 64
// columns and 128 rows, and marches down it eight rows at a time, a warp a row, into shared memory. If the view is
// blurred, the strip is as much wider and longer as the sample's own kernel reaches; rows are blurred across into a ring
// of as many as the kernel has taps, and down from there, eight outputs a thread. Finished rows go out of shared memory
// 16 bytes at a time, where sides of 8 pixels' multiples allow, else one number at a time; all but these, and the bytes
// of the crop, is in shared memory and registers.
//
// Grid: one block a strip of a view. Block: 256 threads. Where a row or column of the view lies in the crop, and the
// filter's sum, is computed once a block; weights anew for each pixel, in float. The mean luma is summed in float by a
// thread, in double beyond, in an order that depends on the sizes alone; all else in float.
// No parameter is read on the host. Bytes moved: those of the crop, read (twice where contrast changes); the view, written.
// CUDA and not Triton: gathers of bytes, a branch a sample, and a ring of rows in shared memory.
// Reference and tests: fastssl/ops/augment.py, tests/ops/test_augment.py.
#include "augment.h"

#include "packs.cuh"
#include "reduce.cuh"
#include "view_parts.cuh"

namespace fastssl::cuda {
namespace {

// ---- parameters ----

__device__ bool lies_within(std::int64_t first, std::int64_t extent, std::int64_t end) {
    return extent >= 1 && extent <= end && first >= 0 && first <= end - extent;
}

// Whether what is asked of image i is in its range: `refuse_outside` in fastssl/ops/_views.py, which a CPU asks before.
__device__ bool in_range(const Batch& batch, const Form& form, std::int64_t i) {
    constexpr std::int64_t kMost = 0x7fffffff;  // pixels a side
    std::int64_t height = form.height, width = form.width;
    if (batch.places != nullptr) {
        const std::int64_t* const place = batch.places + 3 * i;
        height = place[1], width = place[2];
        if (height < 1 || height > kMost || width < 1 || width > kMost) return false;
        if (place[0] < 0 || height > (form.bytes - place[0]) / (3 * width)) return false;
    }
    const std::int64_t* const box = batch.crop + 4 * i;
    bool within = lies_within(box[0], box[2], height) && lies_within(box[1], box[3], width);
    within = within && batch.rot90[i] >= 0 && batch.rot90[i] < 4;
    unsigned seen = 0;
    for (int place = 0; place < 4; ++place) {
        const std::int64_t step = batch.order[4 * i + place];
        if (step >= 0 && step < 4) seen |= 1u << step;
        const float factor = batch.factors[4 * i + place];
        within = within && (place < 3 ? factor >= 0 && factor < kInfinity<float> : factor >= -0.5f && factor <= 0.5f);
    }
    return within && seen == 0xf && batch.sigma[i] >= 0 && batch.sigma[i] < kInfinity<float>;
}

// Reads what is asked of the block's image into shared memory; whether it can be done.
__device__ bool read_sample(const Batch& batch, const Form& form, std::int64_t image, Sample& sample) {
    __shared__ bool valid;
    if (threadIdx.x == 0) {
        valid = in_range(batch, form, image);
        if (valid) batch.read(image, sample);
    }
    __syncthreads();
    return valid;
}

// ---- pixels ----

__device__ Taps taps_of(std::int64_t at, std::int64_t extent, const Form& form, bool reversed) {
    const std::int64_t size = form.cut.size, i = mirrored(at, size);
    const Span span = span_of(reversed ? size - 1 - i : i, extent, size, form.bicubic);
    Taps taps{span.first, static_cast<int>(span.last - span.first), static_cast<float>(span.distance(span.first)),
              static_cast<float>(span.shrink), 0.0f};
    double total = 0;
    for (int k = 0; k < taps.count; ++k) total += filter(taps.offset + static_cast<float>(k) * taps.shrink, form.bicubic);
    taps.share = static_cast<float>(1.0 / total);
    return taps;
}

// Those of the part's columns and rows, and of `reach` around it.
__device__ void find_taps(const Form& form, const Sample& sample, const Part& part, int reach, Taps* columns, Taps* rows) {
    for (int k = threadIdx.x; k < part.columns + 2 * reach; k += kThreads)
        columns[k] = taps_of(part.x - reach + k, sample.crop.width, form, sample.reversed_columns);
    for (int k = threadIdx.x; k < part.rows + 2 * reach; k += kThreads)
        rows[k] = taps_of(part.y - reach + k, sample.crop.height, form, sample.reversed_rows);
}

template <bool kBicubic>
__device__ void resample(const Crop& crop, const Taps& row, const Taps& column, float (&c)[3]) {
    const std::uint8_t* line = crop.pixels + row.first * crop.row_step + column.first * crop.column_step;
    for (int j = 0; j < row.count; ++j, line += crop.row_step) {
        const std::uint8_t* pixel = line;
        float sums[3] = {};
#pragma unroll 2
        for (int k = 0; k < column.count; ++k, pixel += crop.column_step) {
            const float weight = filter(column.offset + static_cast<float>(k) * column.shrink, kBicubic);
#pragma unroll
            for (int i = 0; i < 3; ++i) sums[i] += weight * static_cast<float>(__ldg(pixel + i * crop.channel_step));
        }
        const float weight = filter(row.offset + static_cast<float>(j) * row.shrink, kBicubic);
#pragma unroll
        for (int i = 0; i < 3; ++i) c[i] += weight * sums[i];
    }
    const float share = row.share * column.share;
#pragma unroll
    for (int i = 0; i < 3; ++i) c[i] = kBicubic ? within(c[i] * share, kBrightest) : c[i] * share;
}

// A pixel with the sample's first `steps` steps of colour.
__device__ void make_pixel(const Form& form, const Sample& sample, const Taps& row, const Taps& column, int steps,
                           float mean, float (&c)[3]) {
    form.bicubic ? resample<true>(sample.crop, row, column, c) : resample<false>(sample.crop, row, column, c);
    for (int k = 0; k < steps; ++k) {
        const float factor = sample.factor[k];
        switch (sample.step[k]) {
            case Step::brightness: blend(c, 0.0f, factor); break;
            case Step::contrast: blend(c, mean, factor); break;
            case Step::saturation: blend(c, luma(c), factor); break;
            case Step::hue: turn_hue(c, factor); break;
        }
    }
}

// sums: of each block, of views whose contrast changes.
__global__ void __launch_bounds__(kThreads, kResident)
    luma_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Form form, double* sums) {
    __shared__ Sample sample;
    const Part part(form.cut, blockIdx.x);
    if (!read_sample(batch, form, part.image, sample)) return;
    const int steps = sample.before_contrast();
    if (steps == sample.steps) return;
    Taps* const columns = dynamic_shared<Taps>();
    Taps* const rows = columns + form.cut.columns();
    find_taps(form, sample, part, 0, columns, rows);
    __syncthreads();
    float sum = 0;
    for (int y = threadIdx.x / kWarp; y < part.rows; y += kRows)
        for (int x = threadIdx.x % kWarp; x < part.columns; x += kWarp) {
            float c[3] = {};
            make_pixel(form, sample, rows[y], columns[x], steps, 0.0f, c);
            sum += luma(c);
        }
    const double total = reduce_block<kThreads>(static_cast<double>(sum), Plus{});
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// The mean luma of the block's view, from the sums of its parts.
__device__ float mean_luma(const Cut& cut, const double* sums, std::int64_t image) {
    double total = 0;
    for (int k = threadIdx.x; k < cut.parts(); k += kThreads) total += sums[image * cut.parts() + k];
    total = reduce_block<kThreads>(total, Plus{});
    return static_cast<float>(total / (static_cast<double>(cut.size) * cut.size));
}

// ---- blur ----

// A Gaussian of `reach` to each side, normalised, and zeros for the last step of taps.
__device__ void make_gaussian(float sigma, int reach, float* kernel) {
    const auto gaussian = [=](int k) {
        const float x = static_cast<float>(k) / sigma;
        return expf(-0.5f * x * x);
    };
    float total = 1;
    for (int k = 1; k <= reach; ++k) total += 2 * gaussian(k);
    for (int k = threadIdx.x; k < 2 * reach + 1 + kStep; k += kThreads)
        kernel[k] = k <= 2 * reach ? gaussian(k - reach) / total : 0.0f;
}

// out[k] = sum over t < taps of kernel[t] * at(t + k). Reads up to kStep - 1 numbers beyond, which must be finite.
template <class At>
__device__ void blur_run(const float* kernel, int taps, At at, float (&out)[kRun]) {
    float seen[kRun + kStep - 1];
#pragma unroll
    for (int k = 0; k < kRun; ++k) out[k] = 0;
#pragma unroll
    for (int k = 0; k < kRun - 1; ++k) seen[k] = at(k);
    for (int t = 0; t < taps; t += kStep) {
#pragma unroll
        for (int s = 0; s < kStep; ++s) seen[kRun - 1 + s] = at(t + kRun - 1 + s);
#pragma unroll
        for (int s = 0; s < kStep; ++s) {
            const float weight = kernel[t + s];
#pragma unroll
            for (int k = 0; k < kRun; ++k) out[k] += weight * seen[k + s];
        }
#pragma unroll
        for (int k = 0; k < kRun - 1; ++k) seen[k] = seen[k + kStep];
    }
}

// The kRows rows of `raw`, blurred along, into the ring from row `slot` on.
__device__ void blur_across(const Cut& cut, const Workspace& w, int reach, int columns, int slot) {
    const int ring_rows = 2 * reach + kRows, runs = (columns + kRun - 1) / kRun;
    for (int item = threadIdx.x; item < 3 * kRows * runs; item += kThreads) {
        const int line = item % (3 * kRows), x = item / (3 * kRows) * kRun;
        const float* const from = w.raw + line * cut.pitch() + x;
        float out[kRun];
        blur_run(w.kernel, 2 * reach + 1, [=](int k) { return from[k]; }, out);
        const int row = slot + line % kRows;
        float* const to =
            w.ring + (line / kRows * ring_rows + (row < ring_rows ? row : row - ring_rows)) * cut.ring_pitch() + x;
#pragma unroll
        for (int k = 0; k < kRun; ++k) to[k] = out[k];
    }
}

// The ring's rows, of which `slot` is the oldest, blurred downwards, into `raw`.
__device__ void blur_down(const Cut& cut, const Workspace& w, int reach, int columns, int slot) {
    const int ring_rows = 2 * reach + kRows;
    for (int item = threadIdx.x; item < 3 * cut.width; item += kThreads) {
        const int channel = item / cut.width, x = item % cut.width;
        if (x >= columns) continue;
        const float* const from = w.ring + channel * ring_rows * cut.ring_pitch() + x;
        const auto at = [=](int k) {
            const int row = slot + min(k, ring_rows - 1);
            return from[(row < ring_rows ? row : row - ring_rows) * cut.ring_pitch()];
        };
        float out[kRun];
        blur_run(w.kernel, 2 * reach + 1, at, out);
#pragma unroll
        for (int k = 0; k < kRun; ++k) w.raw[(channel * kRows + k) * cut.pitch() + x] = out[k];
    }
}

// ---- views ----

// Where row y and column x of the view of `image` is.
__device__ std::int64_t place_of(const Form& form, std::int64_t image, int channel, std::int64_t y, std::int64_t x) {
    const std::int64_t size = form.cut.size;
    return form.channels_last ? ((image * size + y) * size + x) * 3 + channel
                              : ((image * 3 + channel) * size + y) * size + x;
}

// Calls write(place in memory, row, element, channel) for N elements at a time of kRows rows of the part, of which the
// first is `first`: those that the part has. An element is a column or, channels last, a column's channel.
template <int N, class Write>
__device__ void for_each_element(const Form& form, const Part& part, int first, Write write) {
    const int lines = form.channels_last ? kRows : 3 * kRows;
    const int items = (form.channels_last ? 3 : 1) * part.columns / N;
    for (int i = threadIdx.x; i < lines * items; i += kThreads) {
        const int line = i / items, element = i % items * N, row = line % kRows, channel = line / kRows;
        if (first + row < 0 || first + row >= part.rows) continue;
        write(place_of(form, part.image, channel, part.y + first + row, part.x) + element, row, element, channel);
    }
}

// The rows of `raw` solarized, normalised and rounded.
template <int N, class S>
__device__ void write_rows(const Form& form, const Part& part, bool solarize, int first, const float* raw, S* out) {
    for_each_element<N>(form, part, first, [&](std::int64_t place, int row, int element, int channel) {
        float values[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const int x = form.channels_last ? (element + k) / 3 : element + k;
            const int c = form.channels_last ? (element + k) % 3 : channel;
            const float value = raw[(c * kRows + row) * form.cut.pitch() + x];
            values[k] = (solarize ? solarized(value) : value) * form.scale[c] + form.bias[c];
        }
        store(out + place, values);
    });
}

template <class S>
__device__ void fill_part(const Form& form, const Part& part, S* out) {
    for (int first = 0; first < part.rows; first += kRows)
        for_each_element<1>(form, part, first, [&](std::int64_t place, int, int, int) {
            out[place] = narrow<S>(not_a_number<float>());
        });
}

template <class S>
__global__ void __launch_bounds__(kThreads, kResident)
    view_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Form form, const double* sums, S* out) {
    __shared__ Sample sample;
    const Cut& cut = form.cut;
    const Part part(cut, blockIdx.x);
    if (!read_sample(batch, form, part.image, sample)) return fill_part(form, part, out);
    const float mean = sample.before_contrast() < sample.steps ? mean_luma(cut, sums, part.image) : 0.0f;
    const int reach = static_cast<int>(blur_reach(sample.sigma, cut.radius)), ring_rows = 2 * reach + kRows;
    const Workspace w(cut);
    find_taps(form, sample, part, reach, w.columns, w.rows);
    if (reach > 0) make_gaussian(sample.sigma, reach, w.kernel);
    __syncthreads();
    int slot = 0;
    for (int first = 0; first < part.rows + 2 * reach; first += kRows) {
        const int row = threadIdx.x / kWarp;
        if (first + row < part.rows + 2 * reach)
            for (int x = threadIdx.x % kWarp; x < part.columns + 2 * reach; x += kWarp) {
                float c[3] = {};
                make_pixel(form, sample, w.rows[first + row], w.columns[x], sample.steps, mean, c);
                if (sample.gray) c[0] = c[1] = c[2] = luma(c);
#pragma unroll
                for (int i = 0; i < 3; ++i) w.raw[(i * kRows + row) * cut.pitch() + x] = c[i];
            }
        __syncthreads();
        if (reach > 0) {
            blur_across(cut, w, reach, part.columns, slot);
            slot = slot + kRows < ring_rows ? slot + kRows : slot + kRows - ring_rows;
            __syncthreads();
            if (first + kRows > 2 * reach) blur_down(cut, w, reach, part.columns, slot);  // else no row is known yet
            __syncthreads();
        }
        if (form.packs)
            write_rows<kPack>(form, part, sample.solarize, first - 2 * reach, w.raw, out);
        else
            write_rows<1>(form, part, sample.solarize, first - 2 * reach, w.raw, out);
        __syncthreads();
    }
}

template <class S>
cudaError_t launch_views(const Batch& batch, const Form& form, std::int64_t n, double* sums, void* out,
                         cudaStream_t stream) {
    const std::int64_t blocks = n * form.cut.parts();
    const cudaError_t error = launch(luma_kernel, blocks, kThreads, form.cut.tap_bytes(), stream, batch, form, sums);
    if (error != cudaSuccess) return error;
    return launch(view_kernel<S>, blocks, kThreads, form.cut.bytes(), stream, batch, form, sums, static_cast<S*>(out));
}

}  // namespace

std::int64_t augment_blocks(std::int64_t n, std::int64_t size) { return n * Cut(static_cast<int>(size)).parts(); }

cudaError_t augment(const std::uint8_t* images, const std::int64_t* places, std::int64_t n, std::int64_t image_step,
                    std::int64_t channel_step, std::int64_t row_step, std::int64_t column_step, const std::int64_t* crop,
                    const bool* flip, const std::int64_t* rot90, const std::int64_t* order, const float* factors,
                    const bool* gray, const float* sigma, const bool* solarize, std::int64_t size,
                    const float* normalization, bool bicubic, DType dtype, bool channels_last, void* out,
                    std::int64_t height, std::int64_t width, std::int64_t bytes, double* scratch, cudaStream_t stream) {
    if (size < 1 || size > kAugmentLargest) return cudaErrorInvalidValue;
    const Batch batch{images, places, image_step, channel_step, row_step, column_step, crop,
                      flip,   rot90,  order,      factors,      gray,     sigma,       solarize};
    Form form{Cut(static_cast<int>(size)), height, width, bytes, bicubic, channels_last, packable(size, {out}), {}, {}};
    for (int c = 0; c < 3; ++c) {
        form.scale[c] = normalization[c];
        form.bias[c] = normalization[3 + c];
    }
    switch (dtype) {
        case DType::f32: return launch_views<float>(batch, form, n, scratch, out, stream);
        case DType::bf16: return launch_views<__nv_bfloat16>(batch, form, n, scratch, out, stream);
        case DType::f16: return launch_views<__half>(batch, form, n, scratch, out, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace fastssl::cuda
