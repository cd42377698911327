// DINO's cross-entropy between the crops of teacher and student.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// student (students, batch, prototypes) of student_dtype, teacher (teachers, batch, prototypes) of teacher_dtype, both
// contiguous; center (prototypes) or null, loss () and stats (2, students + teachers, batch) are float, or double where
// student_dtype is f64. teacher_temp 0: the teacher's rows are probabilities already.
// The log-sum-exp of a row is stats[0] + stats[1], its maximum and the log of what is left; of a row of probabilities,
// stats[1] is the sum. scratch: distillation_loss_scratch bytes at a multiple of 16.
cudaError_t distillation_loss_forward(const void* student, const void* teacher, const void* center,
                                      std::int64_t students, std::int64_t teachers, std::int64_t batch,
                                      std::int64_t prototypes, DType student_dtype, DType teacher_dtype,
                                      double student_temp, double teacher_temp, void* loss, void* stats, void* scratch,
                                      cudaStream_t stream);
std::int64_t distillation_loss_scratch(std::int64_t students, std::int64_t teachers, std::int64_t batch,
                                       std::int64_t prototypes, DType student_dtype);

// grad () has the loss's type; grad_student is as student.
cudaError_t distillation_loss_backward(const void* grad, const void* student, const void* teacher, const void* center,
                                       const void* stats, std::int64_t students, std::int64_t teachers,
                                       std::int64_t batch, std::int64_t prototypes, DType student_dtype,
                                       DType teacher_dtype, double student_temp, double teacher_temp,
                                       void* grad_student, cudaStream_t stream);

}  // namespace fastssl::cuda
