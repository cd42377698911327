#pragma once

#include <cstdint>

#include "dtype.h"

// student (students, batch, prototypes) of student_dtype, teacher (teachers, batch, prototypes) of teacher_dtype, both
// contiguous; center (prototypes) or null, loss () and stats (2, students + teachers, batch) are float, or double where
// student_dtype is f64. teacher_temp 0: the teacher's rows are probabilities already.
// The log-sum-exp of a row is stats[0] + stats[1], its maximum and the log of what is left; of a row of probabilities,
// stats[1] is the sum.
FASTSSL_KERNEL(void distillation_loss_forward(const void* student, const void* teacher, const void* center,
                                              std::int64_t students, std::int64_t teachers, std::int64_t batch,
                                              std::int64_t prototypes, DType student_dtype, DType teacher_dtype,
                                              double student_temp, double teacher_temp, void* loss, void* stats,
                                              int threads))
// grad () has the loss's type; grad_student is as student.
FASTSSL_KERNEL(void distillation_loss_backward(const void* grad, const void* student, const void* teacher,
                                               const void* center, const void* stats, std::int64_t students,
                                               std::int64_t teachers, std::int64_t batch, std::int64_t prototypes,
                                               DType student_dtype, DType teacher_dtype, double student_temp,
                                               double teacher_temp, void* grad_student, int threads))
