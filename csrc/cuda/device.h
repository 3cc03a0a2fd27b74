// The device that a call works on. Tests that run the kernels on the CPU define FT_CUDA_SHIM.
#pragma once

#include <ATen/core/Tensor.h>

#ifdef FT_CUDA_SHIM
#include <cuda_runtime.h>
#else
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace fusedtricks::cuda {

#ifdef FT_CUDA_SHIM

inline constexpr c10::DeviceType kDeviceType = c10::kCPU;

class DeviceScope {
 public:
  explicit DeviceScope(c10::Device) {}
  cudaStream_t stream() const { return {}; }
  int64_t stream_id() const { return 0; }
  bool is_capturing() const { return false; }
  int64_t n_multiprocessors() const { return 2; }
  bool takes_large_arguments() const { return true; }
  void check_launch() const {}
};

#else

inline constexpr c10::DeviceType kDeviceType = c10::kCUDA;

// Makes `device` the current one and gives its current stream.
class DeviceScope {
 public:
  explicit DeviceScope(c10::Device device) {
    if (device.has_index()) guard_.set_device(device);
  }
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }
  int64_t stream_id() const { return c10::cuda::getCurrentCUDAStream().id(); }
  bool is_capturing() const {
    return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  }
  int64_t n_multiprocessors() const {
    return at::cuda::getCurrentDeviceProperties()->multiProcessorCount;
  }
  // Kernel arguments beyond 4 KB came with the driver of CUDA 12.1.
  bool takes_large_arguments() const {
    static const bool takes = [] {
      int version = 0;
      return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12010;
    }();
    return takes;
  }
  void check_launch() const { C10_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  c10::cuda::OptionalCUDAGuard guard_;
};

#endif

}  // namespace fusedtricks::cuda
