"""Fused multi-tensor optimizers for PyTorch, and the training tricks around them."""

__version__ = "0.1.0"

from fusedtricks import amp, backends, data, losses, lr_scheduler, nn, optim

__all__ = ["__version__", "amp", "backends", "data", "losses", "lr_scheduler", "nn", "optim"]
