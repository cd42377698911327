// Keys written into a queue of rows that is used in a circle.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastssl::cuda {

enum class DType : std::int64_t;

// queue: (length, columns) rows `stride` elements apart; cursor: one number on the device, of which the remainder by
// `length` is taken; keys: (count, columns) contiguous.
cudaError_t enqueue(void* queue, std::int64_t length, std::int64_t stride, DType queue_dtype, std::int64_t* cursor,
                    const void* keys, std::int64_t count, std::int64_t columns, DType keys_dtype, bool normalize,
                    cudaStream_t stream);

}  // namespace fastssl::cuda
