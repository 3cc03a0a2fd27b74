"""Models, layers, initialisations, and what is done with whole models."""

from fusedtricks.nn.averaging import ModelEMA
from fusedtricks.nn.blur_pool import BlurPool, ConvBlurPool, MaxBlurPool
from fusedtricks.nn.consistency import ShiftConsistency, shift_consistency
from fusedtricks.nn.dropout import DropoutSchedule, ScheduledDropout
from fusedtricks.nn.ensemble import Ensemble, average_weights
from fusedtricks.nn.fixup import (
    FixupBlock,
    ScalarBias,
    ScalarScale,
    fixup_init_,
    fixup_param_groups,
    fixup_scale,
)
from fusedtricks.nn.fixup_resnet import FixupBasicBlock, FixupBottleneck, FixupResNet
from fusedtricks.nn.lsuv import lsuv_
from fusedtricks.nn.multi_task import HardSharing, UncertaintyWeighting, soft_sharing_penalty
from fusedtricks.nn.orthogonal import OrthogonalDecay, orthogonal_penalty, orthogonal_weights
from fusedtricks.nn.resnets import ResNet, resnet
from fusedtricks.nn.shake import ShakeDrop, ShakeShake, linear_keep_probabilities, shake_shake
from fusedtricks.nn.shake_resnet import ShakeShakeBlock, ShakeShakeResNet
from fusedtricks.nn.small_resnet import SmallResNet
from fusedtricks.nn.surgery import apply_blurpool
from fusedtricks.nn.zero_gamma import zero_gamma_

__all__ = [
    "BlurPool",
    "ConvBlurPool",
    "DropoutSchedule",
    "Ensemble",
    "FixupBasicBlock",
    "FixupBlock",
    "FixupBottleneck",
    "FixupResNet",
    "HardSharing",
    "MaxBlurPool",
    "ModelEMA",
    "OrthogonalDecay",
    "ResNet",
    "ScalarBias",
    "ScalarScale",
    "ScheduledDropout",
    "ShakeDrop",
    "ShakeShake",
    "ShakeShakeBlock",
    "ShakeShakeResNet",
    "ShiftConsistency",
    "SmallResNet",
    "UncertaintyWeighting",
    "apply_blurpool",
    "average_weights",
    "fixup_init_",
    "fixup_param_groups",
    "fixup_scale",
    "linear_keep_probabilities",
    "lsuv_",
    "orthogonal_penalty",
    "orthogonal_weights",
    "resnet",
    "shake_shake",
    "shift_consistency",
    "soft_sharing_penalty",
    "zero_gamma_",
]
