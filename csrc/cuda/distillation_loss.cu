// DINO's cross-entropy between crops (Caron et al. 2021, arXiv:2104.14294, algorithm 1), forward and backward.
//
//   p_t = softmax((teacher_t - center) / teacher_temp), q_s = softmax(student_s / student_temp), over the prototypes
//   loss = mean over samples and pairs (t, s != t) of -<p_t, log q_s>
//   dloss/dstudent_s = (q_s sum_{t != s} <p_t, 1> - sum_{t != s} p_t) / (student_temp * pairs * batch)
//
// The sum over s of <p_t, log q_s> is <p_t, sum over s of log q_s>: one read of each row serves all pairs.
//
// Forward, three launches. A warp takes a tile of 512 prototypes of one sample, 16 a lane, and passes over all rows:
// each row yields its maximum over the tile, its sum of exponentials and, of a teacher, D_t = sum_k e_tk
// sum_{s != t} (x_sk - maximum_s); the rows of students that have a teacher are read again for their own D_t, out of
// the nearest cache. Tiles, not rows, are the units of work: with few rows the GPU is full all the same. Then one block
// a sample merges the tiles of each row in double, and one block sums the samples.
// Backward, one launch: a thread takes 8 prototypes of one sample and passes over all students; probabilities of
// teachers are made anew for each sum of them that differs, which is each student that has a teacher to leave out.
//
// Blocks of 256 threads; accesses of 16 bytes where the addresses allow, and the dtype is one branch a row, alike for
// the whole block, in place of a kernel for every pair of them. Accumulated in float within a tile (double for f64), in
// double beyond, in an order that depends on the sizes alone. The exponential is expf, not its approximation, whose
// error grows with the logits; at one an element, it is memory that both directions wait for. Bytes moved: student and
// teacher read once a direction, the gradient written once; forward, three numbers a row and tile.
// CUDA and not Triton: any number of rows of two dtypes pass under one tile.
// Reference and tests: fastssl/ops/distillation_loss.py, tests/ops/test_distillation_loss.py.
#include "distillation_loss.h"

#include "columns.cuh"
#include "common.cuh"
#include "reduce.cuh"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kOfLane = 2 * kPack, kTile = kWarp * kOfLane;
// The tiles' blocks are smaller, for five of them then share a multiprocessor's registers: 20 KB of 16-bit rows are on
// their way at a time.
constexpr int kTileThreads = 128, kTileWarps = kTileThreads / kWarp;
template <class T>
constexpr int kTileBlocks = sizeof(T) == 4 ? 5 : 1;

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

// What both directions are given.
template <class T>
struct Problem {
    const void* student;
    const void* teacher;
    const T* center;  // null for none
    std::int64_t students, teachers, batch, prototypes;
    DType student_dtype, teacher_dtype;
    T student_scale, teacher_scale;  // 1 / temperature
    bool has_probabilities;

    __host__ __device__ std::int64_t rows() const { return students + teachers; }
    __host__ __device__ std::int64_t tiles() const { return parts(prototypes, kTile); }
    double pairs() const {
        return static_cast<double>(students * teachers - (students < teachers ? students : teachers));
    }
};

template <class T, bool kPacked, int kCount>
__device__ void read(const void* rows, DType dtype, std::int64_t row, T scale, const Columns<kPacked, kCount>& at,
                     T (&out)[kCount]) {
    with_summand<T>(dtype, [&](auto type) {
        load(static_cast<const decltype(type)*>(rows) + row * at.end, at, -kInfinity<T>, out);
    });
#pragma unroll
    for (int k = 0; k < kCount; ++k) out[k] *= scale;
}

// Scaled logits; -infinity beyond the end.
template <class T, bool kPacked, int kCount>
__device__ void read_student(const Problem<T>& p, std::int64_t s, std::int64_t sample,
                             const Columns<kPacked, kCount>& at, T (&out)[kCount]) {
    read(p.student, p.student_dtype, s * p.batch + sample, p.student_scale, at, out);
}

// Scaled logits less the center, -infinity beyond the end; or probabilities, 0 beyond it.
template <class T, bool kPacked, int kCount>
__device__ void read_teacher(const Problem<T>& p, std::int64_t t, std::int64_t sample,
                             const Columns<kPacked, kCount>& at, T (&out)[kCount]) {
    read(p.teacher, p.teacher_dtype, t * p.batch + sample, T(1), at, out);
    if (p.has_probabilities) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) out[k] = at.has(k) ? out[k] : T(0);
        return;
    }
    T center[kCount] = {};
    if (p.center != nullptr) load(p.center, at, T(0), center);
#pragma unroll
    for (int k = 0; k < kCount; ++k) out[k] = (out[k] - center[k]) * p.teacher_scale;
}

// Subtracts from the lanes' numbers their maximum, or the lowest finite number, and returns it.
template <class T, int kCount>
__device__ T shift(T (&x)[kCount]) {
    T most = kLowest<T>;
#pragma unroll
    for (int k = 0; k < kCount; ++k) most = Maximum{}(most, x[k]);
    most = reduce_lanes(most, Maximum{});
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] -= most;
    return most;
}

// What the tiles of all rows come to; the tiles of one row lie side by side.
template <class T>
struct Parts {
    T* data;
    std::int64_t tiles, rows, batch;

    __device__ T* of_row(std::int64_t field, std::int64_t sample, std::int64_t row) const {
        return data + ((field * batch + sample) * rows + row) * tiles;
    }
    __device__ T* maximum(std::int64_t sample, std::int64_t row) const { return of_row(0, sample, row); }
    __device__ T* total(std::int64_t sample, std::int64_t row) const { return of_row(1, sample, row); }
    __device__ T* dot(std::int64_t sample, std::int64_t row) const { return of_row(2, sample, row); }
};

// A student's tile, shifted, into `others`, the sum of all of them.
template <class T, bool kPacked>
__device__ void add_student(const Problem<T>& p, const Parts<T>& parts, std::int64_t s, std::int64_t sample,
                            std::int64_t tile, const Columns<kPacked, kOfLane>& at, T (&others)[kOfLane]) {
    T x[kOfLane], total = 0;
    read_student(p, s, sample, at, x);
    const T most = shift(x);
#pragma unroll
    for (int k = 0; k < kOfLane; ++k) {
        others[k] += x[k];
        total += exponential(x[k]);
    }
    total = reduce_lanes(total, Plus{});
    if (at.lane != 0) return;
    parts.maximum(sample, s)[tile] = most;
    parts.total(sample, s)[tile] = total;
}

// A teacher's tile against the students' shifted logits but for its own.
template <class T, bool kPacked>
__device__ void meet_teacher(const Problem<T>& p, const Parts<T>& parts, std::int64_t t, std::int64_t sample,
                             std::int64_t tile, const Columns<kPacked, kOfLane>& at, const T (&all)[kOfLane]) {
    T e[kOfLane], own[kOfLane] = {}, total = 0, dot = 0, most = 0;
    read_teacher(p, t, sample, at, e);
    if (!p.has_probabilities) {
        most = shift(e);
#pragma unroll
        for (int k = 0; k < kOfLane; ++k) e[k] = exponential(e[k]);
    }
    if (t < p.students) {
        read_student(p, t, sample, at, own);
        shift(own);
    }
#pragma unroll
    for (int k = 0; k < kOfLane; ++k) {
        total += e[k];
        dot += at.has(k) ? e[k] * (all[k] - own[k]) : T(0);  // beyond the end, all is infinite
    }
    total = reduce_lanes(total, Plus{});
    dot = reduce_lanes(dot, Plus{});
    if (at.lane != 0) return;
    const std::int64_t row = p.students + t;
    parts.maximum(sample, row)[tile] = most;
    parts.total(sample, row)[tile] = total;
    parts.dot(sample, row)[tile] = dot;
}

template <class T, bool kPacked>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>) tile_kernel(Problem<T> p, Parts<T> parts) {
    const std::int64_t unit = std::int64_t{blockIdx.x} * kTileWarps + threadIdx.x / kWarp;
    if (unit >= p.batch * parts.tiles) return;
    const std::int64_t sample = unit / parts.tiles, tile = unit % parts.tiles;
    const Columns<kPacked, kOfLane> at{tile * kTile, p.prototypes, static_cast<int>(threadIdx.x % kWarp), kWarp};
    T all[kOfLane] = {};
    for (std::int64_t s = 0; s < p.students; ++s) add_student(p, parts, s, sample, tile, at, all);
    for (std::int64_t t = 0; t < p.teachers; ++t) meet_teacher(p, parts, t, sample, tile, at, all);
}

// Merges the tiles of one row, a warp's work; `maximum` and `log` are its stats.
template <class T>
__device__ void merge_row(const Problem<T>& p, const Parts<T>& parts, std::int64_t sample, std::int64_t row, T* maximum,
                          T* log_total) {
    const T* const maxima = parts.maximum(sample, row);
    const T* const totals = parts.total(sample, row);
    const int lane = threadIdx.x % kWarp;
    T most = kLowest<T>;
    for (std::int64_t i = lane; i < parts.tiles; i += kWarp) most = Maximum{}(most, maxima[i]);
    most = reduce_lanes(most, Maximum{});
    double total = 0;
    for (std::int64_t i = lane; i < parts.tiles; i += kWarp)
        total += static_cast<double>(totals[i]) * exp(static_cast<double>(maxima[i]) - static_cast<double>(most));
    total = reduce_lanes(total, Plus{});
    if (lane != 0) return;
    *maximum = most;
    *log_total = static_cast<T>(row >= p.students && p.has_probabilities ? total : log(total));
}

// A teacher's cross-entropies to the students but for its own, a warp's work, which all lanes get. `stats` are the
// sample's, rows lie p.batch apart.
template <class T>
__device__ double teacher_loss(const Problem<T>& p, const Parts<T>& parts, std::int64_t sample, std::int64_t t,
                               const T* stats) {
    const std::int64_t row = p.students + t;
    const T* const logs = stats + p.rows() * p.batch;
    const double most = stats[row * p.batch];
    double total = 0, dot = 0, sum_of_logs = 0;
    for (std::int64_t i = threadIdx.x % kWarp; i < parts.tiles; i += kWarp) {
        double lowered = 0;  // D_t of this tile is against the tile's own maxima
        for (std::int64_t s = 0; s < p.students; ++s)
            if (s != t)
                lowered += static_cast<double>(parts.maximum(sample, s)[i]) - static_cast<double>(stats[s * p.batch]);
        const double factor = exp(static_cast<double>(parts.maximum(sample, row)[i]) - most);
        const double of_tile = parts.total(sample, row)[i];
        total += factor * of_tile;
        dot += factor * (static_cast<double>(parts.dot(sample, row)[i]) + of_tile * lowered);
    }
    total = reduce_lanes(total, Plus{});
    dot = reduce_lanes(dot, Plus{});
    for (std::int64_t s = 0; s < p.students; ++s)
        if (s != t) sum_of_logs += static_cast<double>(logs[s * p.batch]);
    return p.has_probabilities ? total * sum_of_logs - dot : sum_of_logs - dot / total;
}

// One sample's stats and its sum of cross-entropies. There are as many blocks as samples, so few, and each may use half
// of a multiprocessor's registers.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) sample_kernel(Problem<T> p, Parts<T> parts, T* stats, double* losses) {
    __shared__ double of_warp[kWarps];
    const std::int64_t sample = blockIdx.x;
    const int warp = threadIdx.x / kWarp;
    stats += sample;
    for (std::int64_t row = warp; row < p.rows(); row += kWarps)
        merge_row(p, parts, sample, row, stats + row * p.batch, stats + (p.rows() + row) * p.batch);
    __syncthreads();
    double loss = 0;
    for (std::int64_t t = warp; t < p.teachers; t += kWarps) loss += teacher_loss(p, parts, sample, t, stats);
    if (threadIdx.x % kWarp == 0) of_warp[warp] = loss;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < kWarps; ++i) loss += of_warp[i];
    losses[sample] = loss;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    mean_kernel(const double* losses, std::int64_t batch, double pairs, T* loss) {
    double total = 0;
    for (std::int64_t i = threadIdx.x; i < batch; i += kThreads) total += losses[i];
    total = reduce_block<kThreads>(total, Plus{});
    if (threadIdx.x == 0) *loss = static_cast<T>(total / (pairs * static_cast<double>(batch)));
}

// The sum of the teachers' probabilities but for `left_out`'s: the sum of all less that one would be rounded to their
// size. Returns what they weigh: 1 each, or the sums of probabilities as they are.
template <class T, bool kPacked>
__device__ T add_teachers(const Problem<T>& p, const T* stats, std::int64_t left_out, std::int64_t sample,
                          const Columns<kPacked>& at, T (&sum)[kPack]) {
    T mass = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) sum[k] = T(0);
    for (std::int64_t t = 0; t < p.teachers; ++t) {
        if (t == left_out) continue;
        const T* const maximum = stats + (p.students + t) * p.batch + sample;
        const T most = *maximum, log_total = maximum[p.rows() * p.batch];
        T x[kPack];
        read_teacher(p, t, sample, at, x);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum[k] += p.has_probabilities ? x[k] : exponential((x[k] - most) - log_total);
        mass += p.has_probabilities ? log_total : T(1);
    }
    return mass;
}

// factor: 1 / (student_temp * pairs * batch).
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(Problem<T> p, const T* grad, const T* stats, double factor, void* out) {
    constexpr int kWidth = kThreads * kPack;
    const unsigned blocks = static_cast<unsigned>(parts(p.prototypes, kWidth));  // to a sample
    const std::int64_t sample = blockIdx.x / blocks;
    const std::int64_t first = std::int64_t{blockIdx.x % blocks} * kWidth;
    const Columns<kPacked> at{first, p.prototypes, static_cast<int>(threadIdx.x), kThreads};
    if (!at.has(0)) return;
    const T scale = static_cast<T>(static_cast<double>(*grad) * factor);
    T taught[kPack], mass = 0;
    for (std::int64_t s = 0; s < p.students; ++s) {
        if (s <= p.teachers) mass = add_teachers(p, stats, s, sample, at, taught);  // after it: the same, all
        const std::int64_t row = s * p.batch + sample;
        const T most = stats[row], log_total = stats[p.rows() * p.batch + row];
        T x[kPack];
        read_student(p, s, sample, at, x);
#pragma unroll
        for (int k = 0; k < kPack; ++k) x[k] = (exponential((x[k] - most) - log_total) * mass - taught[k]) * scale;
        with_summand<T>(p.student_dtype, [&](auto type) {
            store(static_cast<decltype(type)*>(out) + row * p.prototypes, at, x);
        });
    }
}

template <class T>
cudaError_t forward(const Problem<T>& p, T* loss, T* stats, void* scratch, cudaStream_t stream) {
    double* const losses = static_cast<double*>(scratch);
    const Parts<T> parts{reinterpret_cast<T*>(losses + p.batch), p.tiles(), p.rows(), p.batch};
    const auto kernel = packable(p.prototypes, {p.student, p.teacher, p.center}) ? tile_kernel<T, true>
                                                                                 : tile_kernel<T, false>;
    cudaError_t error = launch(kernel, fastssl::cuda::parts(p.batch * p.tiles(), kTileWarps), kTileThreads, 0, stream, p, parts);
    if (error == cudaSuccess)
        error = launch(sample_kernel<T>, p.batch, kThreads, 0, stream, p, parts, stats, losses);
    if (error == cudaSuccess) error = launch(mean_kernel<T>, 1, kThreads, 0, stream, losses, p.batch, p.pairs(), loss);
    return error;
}

template <class T>
cudaError_t backward(const Problem<T>& p, const T* grad, const T* stats, double student_temp, void* out,
                     cudaStream_t stream) {
    constexpr int kWidth = kThreads * kPack;
    const double factor = 1.0 / (student_temp * p.pairs() * static_cast<double>(p.batch));
    const auto kernel = packable(p.prototypes, {p.student, p.teacher, p.center, out}) ? gradient_kernel<T, true>
                                                                                      : gradient_kernel<T, false>;
    return launch(kernel, p.batch * parts(p.prototypes, kWidth), kThreads, 0, stream, p, grad, stats, factor, out);
}

template <class T>
Problem<T> problem_of(const void* student, const void* teacher, const void* center, std::int64_t students,
                      std::int64_t teachers, std::int64_t batch, std::int64_t prototypes, DType student_dtype,
                      DType teacher_dtype, double student_temp, double teacher_temp) {
    const bool has_probabilities = teacher_temp == 0;
    return {student,       teacher,       static_cast<const T*>(center),     students,
            teachers,      batch,         prototypes,                        student_dtype,
            teacher_dtype, static_cast<T>(1.0 / student_temp),
            static_cast<T>(has_probabilities ? 1.0 : 1.0 / teacher_temp), has_probabilities};
}

}  // namespace

cudaError_t distillation_loss_forward(const void* student, const void* teacher, const void* center,
                                      std::int64_t students, std::int64_t teachers, std::int64_t batch,
                                      std::int64_t prototypes, DType student_dtype, DType teacher_dtype,
                                      double student_temp, double teacher_temp, void* loss, void* stats, void* scratch,
                                      cudaStream_t stream) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        return forward(problem_of<T>(student, teacher, center, students, teachers, batch, prototypes, student_dtype,
                                     teacher_dtype, student_temp, teacher_temp),
                       static_cast<T*>(loss), static_cast<T*>(stats), scratch, stream);
    };
    return student_dtype == DType::f64 ? run(double{}) : run(float{});
}

std::int64_t distillation_loss_scratch(std::int64_t students, std::int64_t teachers, std::int64_t batch,
                                       std::int64_t prototypes, DType student_dtype) {
    const std::int64_t tiles = parts(prototypes, kTile);
    return batch * (8 + 3 * (students + teachers) * tiles * (student_dtype == DType::f64 ? 8 : 4));
}

cudaError_t distillation_loss_backward(const void* grad, const void* student, const void* teacher, const void* center,
                                       const void* stats, std::int64_t students, std::int64_t teachers,
                                       std::int64_t batch, std::int64_t prototypes, DType student_dtype,
                                       DType teacher_dtype, double student_temp, double teacher_temp,
                                       void* grad_student, cudaStream_t stream) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        return backward(problem_of<T>(student, teacher, center, students, teachers, batch, prototypes, student_dtype,
                                      teacher_dtype, student_temp, teacher_temp),
                        static_cast<const T*>(grad), static_cast<const T*>(stats), student_temp, grad_student, stream);
    };
    return student_dtype == DType::f64 ? run(double{}) : run(float{});
}

}  // namespace fastssl::cuda
