"""Models and layers."""

from fusedtricks.nn.small_resnet import SmallResNet

__all__ = ["SmallResNet"]
