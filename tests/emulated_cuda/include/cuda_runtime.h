// The part of CUDA C++ that the kernels use, for an ordinary C++ compiler. See emulator.h.
#pragma once

#include "cuda_runtime_api.h"
#include "emulator.h"
