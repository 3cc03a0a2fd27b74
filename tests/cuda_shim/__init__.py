"""The CUDA kernels on the CPU."""
