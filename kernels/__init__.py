"""The optimizer step as Triton kernels: for GPUs without a compiled CUDA backend, and for AMD's.

`driver.run` is the entry. The files named `*_kernel.py` and those of the algorithms run on the
device, the others on the host. docs/triton.md describes the design.
"""
