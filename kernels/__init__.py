"""Triton kernels: the optimizer step, and the preparation of a batch of uint8 images.

The step is for GPUs without a compiled CUDA backend, and for AMD's; `driver.run` is its entry, and
`batch.prepare_batch` that of the preparation. The files named `*_kernel.py` and those of the
algorithms run on the device, the others on the host. docs/triton.md and docs/batch.md describe the
design.
"""
