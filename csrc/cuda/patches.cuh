// What take_patches and restore_patches share: rows of a batch of samples, addressed by indices, and the inverse of those.
#pragma once

#include "packs.cuh"
#include "partial_sums.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kPatchThreads = 256;           // one such block on a processor is enough: no register is spilled for more
constexpr std::int64_t kSummedSamples = 16;  // summed by themselves before they join the total: rounding stays small
constexpr std::int64_t kTeams = 4096;        // rows in work at once that fill a large GPU

// Rows of contiguous elements; sample b's row i begins at b * sample_stride + i * row_stride.
template <class T>
struct PatchRows {
    const T* data;
    std::int64_t sample_stride, row_stride;

    __device__ const T* row(std::int64_t sample, std::int64_t i) const {
        return data + sample * sample_stride + i * row_stride;
    }
};

// Whether rows of `width` elements can be moved in packs, and those of the tensors beside them, contiguous or null.
template <class T>
bool in_packs(const PatchRows<T>& rows, std::int64_t width, std::initializer_list<const void*> tensors) {
    return packable(width, tensors) && rows_on_16_bytes(rows.data, rows.sample_stride, sizeof(T)) &&
           rows_on_16_bytes(rows.data, rows.row_stride, sizeof(T));
}

// Of an index below the number of targets: the first and the last row of a sample with that index; -1 as last: none.
struct Named {
    std::int32_t first, last;
};

// Calls f with values of the types of a tensor and of the result of adding others to it: the same, or float.
template <class F>
inline cudaError_t with_patch_types(DType in, DType out, F f) {
    if (in == DType::f32 && out == in) return f(float{}, float{});
    if (in == DType::f64 && out == in) return f(double{}, double{});
    if (in == DType::bf16) return out == in ? f(__nv_bfloat16{}, __nv_bfloat16{}) : f(__nv_bfloat16{}, float{});
    if (in == DType::f16) return out == in ? f(__half{}, __half{}) : f(__half{}, float{});
    return cudaErrorInvalidValue;
}

// How the threads of a backward share it: `lanes` threads a row, kPatchThreads / lanes rows a block; a row's width in
// `pieces`, the batch in `groups` of `samples`, each block having one of both. Sums over a group are a row of the scratch.
struct PatchGrid {
    std::int64_t blocks, groups, samples;
    int lanes, pieces;

    PatchGrid(std::int64_t batch, std::int64_t length, std::int64_t width, int elements) {
        lanes = lanes_of(width, elements);
        pieces = static_cast<int>(parts(width, lanes * elements));
        blocks = parts(length, kPatchThreads / lanes);
        const std::int64_t teams = length * parts(width, 32 * kPack) + 1, most = parts(batch, kSummedSamples);
        const std::int64_t wanted = parts(kTeams, teams);
        samples = parts(batch, wanted < most ? wanted : most > 0 ? most : 1);
        groups = batch == 0 ? 0 : parts(batch, samples);
    }
    Blocks launched() const { return {blocks * pieces, groups}; }
};

// The thread's row, the first of its elements in there, and its samples.
struct PatchPlace {
    std::int64_t row, element, begin, end;

    __device__ PatchPlace(const PatchGrid& grid, std::int64_t batch, int elements) {
        const int rows = kPatchThreads / grid.lanes, piece = blockIdx.x % grid.pieces;
        row = std::int64_t{blockIdx.x / grid.pieces} * rows + threadIdx.x / grid.lanes;
        element = (std::int64_t{piece} * grid.lanes + threadIdx.x % grid.lanes) * elements;
        begin = blockIdx.y * grid.samples;
        end = begin + grid.samples < batch ? begin + grid.samples : batch;
    }
};

// A sum over samples, kSummedSamples at a time.
template <int N, class A>
struct SampleSum {
    A total[N] = {}, group[N] = {};

    __device__ void close() {
        add(total, group);
        fill(group, A(0));
    }
};

__global__ void __launch_bounds__(kPatchThreads, 1)
    invert_kernel(const std::int64_t* ids, std::int64_t rows, std::int64_t targets, Named* named) {
    ids += blockIdx.x * rows;
    named += blockIdx.x * targets;
    for (std::int64_t i = threadIdx.x; i < targets; i += kPatchThreads) named[i] = {0x7fffffff, -1};
    __syncthreads();
    for (std::int64_t row = threadIdx.x; row < rows; row += kPatchThreads) {
        const std::int64_t target = ids[row];
        if (target < 0 || target >= targets) continue;
        atomicMin(&named[target].first, static_cast<std::int32_t>(row));
        atomicMax(&named[target].last, static_cast<std::int32_t>(row));
    }
}

// ids (batch, rows) -> named (batch, targets), one block a sample; batch > 0.
inline cudaError_t invert(const std::int64_t* ids, std::int64_t batch, std::int64_t rows, std::int64_t targets,
                          Named* named, cudaStream_t stream) {
    return launch(invert_kernel, batch, kPatchThreads, 0, stream, ids, rows, targets, named);
}

// Adds to `sum` the elements of the rows after `named.first` that have the index `target`, in their order. An index is
// seldom given twice, so there is no list of them to follow, and no register spent on reading ahead.
template <int N, class O, class A>
__device__ inline void add_further(const PatchRows<O>& rows, const std::int64_t* ids, std::int64_t sample, Named named,
                                   std::int64_t target, std::int64_t element, A (&sum)[N]) {
#pragma unroll 1
    for (std::int64_t row = std::int64_t{named.first} + 1; row <= named.last; ++row) {
        if (ids[row] != target) continue;
        A more[N];
        load(rows.row(sample, row) + element, more);
        add(sum, more);
    }
}

// out = row + place, added in the accumulator's type; out = row where `place` is null. `lanes` threads share the row.
template <int N, class X, class O>
__device__ inline void write_placed(const X* row, const O* place, O* out, std::int64_t width, int lanes) {
    for (std::int64_t i = std::int64_t{threadIdx.x % lanes} * N; i < width; i += lanes * N) {
        Accumulator<O> values[N];
        load(row + i, values);
        if (place != nullptr) {
            Accumulator<O> added[N];
            load(place + i, added);
            add(values, added);
        }
        store(out + i, values);
    }
}

template <int N, class O>
__device__ inline void write_nan(O* out, std::int64_t width, int lanes) {
    Accumulator<O> values[N];
    fill(values, not_a_number<Accumulator<O>>());
    for (std::int64_t i = std::int64_t{threadIdx.x % lanes} * N; i < width; i += lanes * N) store(out + i, values);
}

}  // namespace
}  // namespace fastssl::cuda
