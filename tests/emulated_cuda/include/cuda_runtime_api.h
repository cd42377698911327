// What the kernels' sources use of CUDA's host interface, for an ordinary C++ compiler. See emulator.h.
#pragma once

#include <cstddef>

#define CUDART_VERSION 13000

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorLaunchFailure = 719,
};
const char* cudaGetErrorString(cudaError_t error);

struct EmulatedStream;
using cudaStream_t = EmulatedStream*;
