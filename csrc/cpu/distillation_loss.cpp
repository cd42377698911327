// DINO's cross-entropy between crops (Caron et al. 2021, arXiv:2104.14294, algorithm 1), forward and backward.
//
//   p_t = softmax((teacher_t - center) / teacher_temp), q_s = softmax(student_s / student_temp), over the prototypes
//   loss = mean over samples and pairs (t, s != t) of -<p_t, log q_s>
//   dloss/dstudent_s = (q_s sum_{t != s} <p_t, 1> - sum_{t != s} p_t) / (student_temp * pairs * batch)
//
// The sum over s of <p_t, log q_s> is <p_t, sum over s of log q_s>: each row is read once in either direction, with one
// exponential an element. A sample is cut into blocks of kBlock prototypes, which stay in the nearest cache while all
// its rows pass. Forward, each block yields for each row its maximum and its sum of exponentials, and for each teacher
// D_t = sum_k e_tk sum_{s != t} (x_sk - maximum_s); the blocks of a row are then merged in double. Backward, a block's
// teacher probabilities are made once for all students.
//
// Accumulated in float within a block (double for f64), in double beyond. The softmaxes are never stored: extra memory
// is a few blocks a thread and three numbers a row and block. Bytes moved: student and teacher read once a direction,
// the gradient written once. Blocks are independent and merged in order: the same bits for any number of threads.
// Reference and tests: fastssl/ops/distillation_loss.py, tests/ops/test_distillation_loss.py.
#include "distillation_loss.h"

#include <math.h>

#include "buffer.h"
#include "pages.h"
#include "simd.h"
#include "threads.h"

namespace fastssl::FASTSSL_ISA {
namespace {

constexpr std::int64_t kBlock = 2048;  // prototypes: four rows of floats are 32 KB


template <class T>
constexpr T kSmallestNormal = sizeof(T) == 4 ? T(1.1754943508222875e-38) : T(2.2250738585072014e-308);

// What both directions are given.
template <class T>
struct Problem {
    const void* student;
    const void* teacher;
    const T* center;  // null for none
    std::int64_t students, teachers, batch, prototypes;
    DType student_dtype, teacher_dtype;
    double student_temp, teacher_temp;

    std::int64_t rows() const { return students + teachers; }
    std::int64_t diagonal() const { return students < teachers ? students : teachers; }
    double pairs() const { return static_cast<double>(students * teachers - diagonal()); }
    std::int64_t blocks() const { return (prototypes + kBlock - 1) / kBlock; }
    bool has_probabilities() const { return teacher_temp == 0; }
};

// Some prototypes of one sample.
struct Span {
    std::int64_t sample, begin, count, padded;  // padded: count rounded up to whole vectors
};

template <class T>
Span span(const Problem<T>& problem, std::int64_t sample, std::int64_t block) {
    const std::int64_t begin = block * kBlock, left = problem.prototypes - begin;
    const std::int64_t count = left < kBlock ? left : kBlock;
    return {sample, begin, count, (count + kWidth<T> - 1) / kWidth<T> * kWidth<T>};
}

template <class T, class S>
void widen_scaled(const S* in, const T* center, T scale, std::int64_t count, T* out) {
    if (center == nullptr)
#pragma GCC ivdep
        for (std::int64_t k = 0; k < count; ++k) out[k] = static_cast<T>(widen(in[k])) * scale;
    else
#pragma GCC ivdep
        for (std::int64_t k = 0; k < count; ++k) out[k] = (static_cast<T>(widen(in[k])) - center[k]) * scale;
}

// out = scale * (row - center) over the span, then -inf to whole vectors.
template <class T>
void read(const void* rows, DType dtype, std::int64_t row, std::int64_t prototypes, const Span& at, const T* center,
          T scale, T* out) {
    with_type(dtype, [&](auto type) {
        const auto* in = static_cast<const decltype(type)*>(rows) + row * prototypes + at.begin;
        widen_scaled(in, center == nullptr ? nullptr : center + at.begin, scale, at.count, out);
    });
    for (std::int64_t k = at.count; k < at.padded; ++k) out[k] = T(-__builtin_inf());
}

template <class T>
void read_student(const Problem<T>& problem, std::int64_t s, const Span& at, T* out) {
    read<T>(problem.student, problem.student_dtype, s * problem.batch + at.sample, problem.prototypes, at, nullptr,
            static_cast<T>(1.0 / problem.student_temp), out);
}

template <class T>
void read_teacher(const Problem<T>& problem, std::int64_t t, const Span& at, T* out) {
    const T scale = problem.has_probabilities() ? T(1) : static_cast<T>(1.0 / problem.teacher_temp);
    read<T>(problem.teacher, problem.teacher_dtype, t * problem.batch + at.sample, problem.prototypes, at,
            problem.center, scale, out);
}

template <class T>
T maximum(const T* row, std::int64_t padded) {
    Vec<T> most = broadcast<T>(kLowest<T>);
    for (std::int64_t k = 0; k < padded; k += kWidth<T>) most = vmax(most, load<T>(row + k));
    return largest<T>(most);
}

// row -= shift, sums += row; returns the sum of exp(row).
template <class T>
T shift_and_sum(T* row, T shift, T* sums, std::int64_t padded) {
    Vec<T> total = {};
    for (std::int64_t k = 0; k < padded; k += kWidth<T>) {
        const Vec<T> x = load<T>(row + k) - shift;
        store<T>(row + k, x);
        store<T>(sums + k, load<T>(sums + k) + x);
        total += exp<T>(x);
    }
    return sum<T>(total);
}

// What a block of one row comes to: its maximum, its sum of exponentials and, of a teacher, D_t.
template <class T>
struct Part {
    T maximum, total, dot;
};

// A teacher's block against others[k] - own[k], the students' shifted logits; `own` null: there is none to leave out.
template <bool Probabilities, class T>
Part<T> teacher_part(const T* row, const T* others, const T* own, std::int64_t padded) {
    const T shift = Probabilities ? T(0) : maximum(row, padded);
    Vec<T> total = {}, dot = {};
    for (std::int64_t k = 0; k < padded; k += kWidth<T>) {
        const Vec<T> e = Probabilities ? load<T>(row + k) : exp<T>(load<T>(row + k) - shift);
        const Vec<T> u = own == nullptr ? load<T>(others + k) : load<T>(others + k) - load<T>(own + k);
        total += e;
        dot += e * u;
    }
    return {shift, sum<T>(total), sum<T>(dot)};
}

// All rows of one block; `work` holds teachers + 2 rows of kBlock.
template <class T>
void forward_block(const Problem<T>& problem, const Span& at, T* work, Part<T>* parts) {
    T* others = work;
    T* row = work + kBlock;
    T* own = work + 2 * kBlock;
    for (std::int64_t k = 0; k < at.padded; ++k) others[k] = T(0);
    for (std::int64_t s = 0; s < problem.students; ++s) {
        T* x = s < problem.teachers ? own + s * kBlock : row;
        read_student(problem, s, at, x);
        const T most = maximum(x, at.padded);
        parts[s] = {most, shift_and_sum(x, most, others, at.padded), T(0)};
    }
    for (std::int64_t k = at.count; k < at.padded; ++k) {  // -inf there times a teacher's 0 would be NaN
        others[k] = T(0);
        for (std::int64_t s = 0; s < problem.diagonal(); ++s) own[s * kBlock + k] = T(0);
    }
    for (std::int64_t t = 0; t < problem.teachers; ++t) {
        read_teacher(problem, t, at, row);
        const T* mine = t < problem.students ? own + t * kBlock : nullptr;
        if (problem.has_probabilities()) {
            for (std::int64_t k = at.count; k < at.padded; ++k) row[k] = T(0);
            parts[problem.students + t] = teacher_part<true>(row, others, mine, at.padded);
        } else {
            parts[problem.students + t] = teacher_part<false>(row, others, mine, at.padded);
        }
    }
}

// exp(of - relative_to), of two maxima.
template <class T>
double weight(T of, T relative_to) {
    return ::exp(static_cast<double>(of) - static_cast<double>(relative_to));
}

// Merges the blocks of all rows of one sample, parts[block][row], into its stats; returns the sample's sum of
// cross-entropies.
template <class T>
double merge(const Problem<T>& problem, const Part<T>* parts, T* maxima, T* logs) {
    const std::int64_t rows = problem.rows(), blocks = problem.blocks(), stride = problem.batch;
    double sum_of_maxima = 0, sum_of_logs = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
        T most = parts[r].maximum;
        for (std::int64_t b = 1; b < blocks; ++b)
            if (parts[b * rows + r].maximum > most) most = parts[b * rows + r].maximum;
        double total = 0;
        for (std::int64_t b = 0; b < blocks; ++b) {
            const Part<T>& part = parts[b * rows + r];
            total += static_cast<double>(part.total) * weight(part.maximum, most);
        }
        const bool is_mass = r >= problem.students && problem.has_probabilities();
        maxima[r * stride] = most;
        logs[r * stride] = static_cast<T>(is_mass ? total : ::log(total));
        if (r < problem.students) {
            sum_of_maxima += static_cast<double>(most);
            sum_of_logs += static_cast<double>(logs[r * stride]);
        }
    }
    double loss = 0;
    for (std::int64_t t = 0; t < problem.teachers; ++t) {
        const std::int64_t r = problem.students + t;
        const bool paired = t < problem.students;
        double total = 0, dot = 0;
        for (std::int64_t b = 0; b < blocks; ++b) {
            const Part<T>* block = parts + b * rows;
            double lowered = -sum_of_maxima;  // D_t of this block is against the block's own maxima
            for (std::int64_t s = 0; s < problem.students; ++s)
                if (s != t) lowered += static_cast<double>(block[s].maximum);
            if (paired) lowered += static_cast<double>(maxima[t * stride]);
            const double factor = weight(block[r].maximum, maxima[r * stride]);
            total += factor * static_cast<double>(block[r].total);
            dot += factor * (static_cast<double>(block[r].dot) + static_cast<double>(block[r].total) * lowered);
        }
        const double others = sum_of_logs - (paired ? static_cast<double>(logs[t * stride]) : 0.0);
        loss += problem.has_probabilities() ? total * others - dot : others - dot / total;
    }
    return loss;
}

template <class T>
void forward(const Problem<T>& problem, T* loss, T* stats, int threads) {
    const std::int64_t blocks = problem.blocks(), rows = problem.rows(), batch = problem.batch, tasks = batch * blocks;
    const int shares = at_most(threads, tasks);
    Buffer<Part<T>> parts(tasks * rows);
    Buffer<T> work(shares * (problem.teachers + 2) * kBlock);
    Buffer<double> losses(batch);
#pragma omp parallel num_threads(shares)
    {
#pragma omp for schedule(static, 1)
        for (std::int64_t share = 0; share < shares; ++share) {
            T* mine = work.get() + share * (problem.teachers + 2) * kBlock;
            for (std::int64_t i = tasks * share / shares; i < tasks * (share + 1) / shares; ++i)
                forward_block(problem, span(problem, i / blocks, i % blocks), mine, parts.get() + i * rows);
        }
#pragma omp for schedule(static)
        for (std::int64_t b = 0; b < batch; ++b)
            losses.get()[b] = merge(problem, parts.get() + b * blocks * rows, stats + b, stats + rows * batch + b);
    }
    double total = 0;
    for (std::int64_t b = 0; b < batch; ++b) total += losses.get()[b];
    *loss = static_cast<T>(total / (problem.pairs() * static_cast<double>(batch)));
}

// scale * exp(row - shift - log_shift), as 0 where it would be subnormal: there processors take a hundred cycles.
template <class T>
struct Softmax {
    T shift, log_shift, scale, least;

    Softmax(T shift, T log_shift, double scale)
        : shift(shift),
          log_shift(log_shift),
          scale(static_cast<T>(scale)),
          least(static_cast<T>(static_cast<double>(kSmallestNormal<T>) / ::fabs(scale))) {}

    Vec<T> scaled(Vec<T> p) const { return (vmax(p, -p) < least ? Vec<T>{} : p) * scale; }
    Vec<T> operator()(Vec<T> row) const { return scaled(exp<T>((row - shift) - log_shift)); }
};

// Turns the teachers' rows of a block into `factor` times their probabilities.
template <class T>
void teacher_probabilities(const Problem<T>& problem, const Span& at, const T* stats, double factor, T* rows) {
    for (std::int64_t t = 0; t < problem.teachers; ++t) {
        T* row = rows + t * kBlock;
        const T* stat = stats + (problem.students + t) * problem.batch + at.sample;
        const Softmax<T> softmax(stat[0], stat[problem.rows() * problem.batch], factor);
        read_teacher(problem, t, at, row);
        for (std::int64_t k = 0; k < at.padded; k += kWidth<T>) {
            const Vec<T> x = load<T>(row + k);
            store<T>(row + k, problem.has_probabilities() ? softmax.scaled(x) : softmax(x));
        }
    }
}

// out = the sum of the teachers' rows but for `left_out`; the sum of all less that one would be rounded to their size.
template <class T>
void add_up(const T* rows, std::int64_t teachers, std::int64_t left_out, std::int64_t padded, T* out) {
    for (std::int64_t k = 0; k < padded; ++k) out[k] = T(0);
    for (std::int64_t t = 0; t < teachers; ++t)
        if (t != left_out)
            for (std::int64_t k = 0; k < padded; k += kWidth<T>)
                store<T>(out + k, load<T>(out + k) + load<T>(rows + t * kBlock + k));
}

// What the teachers of a sample but for `left_out` weigh: 1 each, or the sums of their probabilities as they are.
template <class T>
double mass(const Problem<T>& problem, const T* stats, std::int64_t sample, std::int64_t left_out) {
    double total = 0;
    for (std::int64_t t = 0; t < problem.teachers; ++t) {
        const T* stat = stats + (problem.rows() + problem.students + t) * problem.batch + sample;
        if (t != left_out) total += problem.has_probabilities() ? static_cast<double>(*stat) : 1.0;
    }
    return total;
}

// All students of one block; `work` holds teachers + 2 rows of kBlock.
template <class T>
void backward_block(const Problem<T>& problem, const Span& at, const T* stats, double factor, T* work, void* grad) {
    T* taught = work;  // the sum of the probabilities that the student learns
    T* row = work + kBlock;
    T* teachers = work + 2 * kBlock;
    teacher_probabilities(problem, at, stats, factor, teachers);
    for (std::int64_t s = 0; s < problem.students; ++s) {
        if (s <= problem.teachers) add_up(teachers, problem.teachers, s, at.padded, taught);  // after it: the same, all
        const std::int64_t r = s * problem.batch + at.sample;
        const Softmax<T> softmax(stats[r], stats[problem.rows() * problem.batch + r],
                                 mass(problem, stats, at.sample, s) * factor);
        read_student(problem, s, at, row);
        for (std::int64_t k = 0; k < at.padded; k += kWidth<T>)
            store<T>(row + k, softmax(load<T>(row + k)) - load<T>(taught + k));
        with_type(problem.student_dtype, [&](auto type) {
            auto* out = static_cast<decltype(type)*>(grad) + r * problem.prototypes + at.begin;
#pragma GCC ivdep
            for (std::int64_t k = 0; k < at.count; ++k) narrow(row[k], out[k]);
        });
    }
}

template <class T>
void backward(const Problem<T>& problem, T grad_loss, const T* stats, void* grad, int threads) {
    const std::int64_t blocks = problem.blocks(), tasks = problem.batch * blocks;
    const int shares = at_most(threads, tasks);
    with_type(problem.student_dtype, [&](auto type) {
        const std::int64_t elements = problem.students * problem.batch * problem.prototypes;
        prefer_huge_pages(grad, elements * static_cast<std::int64_t>(sizeof type));
    });
    const double factor =
        static_cast<double>(grad_loss) / (problem.student_temp * problem.pairs() * static_cast<double>(problem.batch));
    Buffer<T> work(shares * (problem.teachers + 2) * kBlock);
#pragma omp parallel for num_threads(shares) schedule(static, 1)
    for (std::int64_t share = 0; share < shares; ++share) {
        T* mine = work.get() + share * (problem.teachers + 2) * kBlock;
        for (std::int64_t i = tasks * share / shares; i < tasks * (share + 1) / shares; ++i)
            backward_block(problem, span(problem, i / blocks, i % blocks), stats, factor, mine, grad);
    }
}

template <class T>
Problem<T> problem_of(const void* student, const void* teacher, const void* center, std::int64_t students,
                      std::int64_t teachers, std::int64_t batch, std::int64_t prototypes, DType student_dtype,
                      DType teacher_dtype, double student_temp, double teacher_temp) {
    return {student,    teacher,       static_cast<const T*>(center), students,     teachers, batch,
            prototypes, student_dtype, teacher_dtype,                 student_temp, teacher_temp};
}

}  // namespace

void distillation_loss_forward(const void* student, const void* teacher, const void* center, std::int64_t students,
                               std::int64_t teachers, std::int64_t batch, std::int64_t prototypes, DType student_dtype,
                               DType teacher_dtype, double student_temp, double teacher_temp, void* loss, void* stats,
                               int threads) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        forward(problem_of<T>(student, teacher, center, students, teachers, batch, prototypes, student_dtype,
                              teacher_dtype, student_temp, teacher_temp),
                static_cast<T*>(loss), static_cast<T*>(stats), threads);
    };
    if (student_dtype == DType::f64)
        run(double{});
    else
        run(float{});
}

void distillation_loss_backward(const void* grad, const void* student, const void* teacher, const void* center,
                                const void* stats, std::int64_t students, std::int64_t teachers, std::int64_t batch,
                                std::int64_t prototypes, DType student_dtype, DType teacher_dtype, double student_temp,
                                double teacher_temp, void* grad_student, int threads) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        backward(problem_of<T>(student, teacher, center, students, teachers, batch, prototypes, student_dtype,
                               teacher_dtype, student_temp, teacher_temp),
                 *static_cast<const T*>(grad), static_cast<const T*>(stats), grad_student, threads);
    };
    if (student_dtype == DType::f64)
        run(double{});
    else
        run(float{});
}

}  // namespace fastssl::FASTSSL_ISA
