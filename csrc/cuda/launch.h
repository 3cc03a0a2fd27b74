// How kernels are launched. Tests compile the kernels for the CPU with an FT_LAUNCH of their own.
#pragma once

#include <cuda_runtime.h>

#ifndef FT_LAUNCH
#define FT_LAUNCH(kernel, grid, block, stream, ...) \
  (kernel)<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
#endif

#define FT_DEVICE __device__ __forceinline__
