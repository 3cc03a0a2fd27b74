// Attributes shared by the code that runs on the host and on a device.
#pragma once

#if defined(__CUDACC__)
#define FT_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined, so that the body takes the instruction set of the function that calls it.
#define FT_HOST_DEVICE inline __attribute__((always_inline))
#endif
