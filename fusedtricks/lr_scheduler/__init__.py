"""Schedules as exact functions of the step, and schedulers that put them into an optimizer.

A schedule such as `Cosine(100)` is a pure function of the number of updates. A scheduler is a
`torch.optim.lr_scheduler.LRScheduler` that sets an optimizer's options to its values:
`ScheduledLR(optimizer, Cosine(100))`, or `CosineAnnealingLR(optimizer, 100)`, torch's signature.
"""

from torch.optim.lr_scheduler import LRScheduler, MultiplicativeLR, ReduceLROnPlateau

from fusedtricks.lr_scheduler.batch_sampler import BatchSizeSampler
from fusedtricks.lr_scheduler.batch_size import BatchSizeSchedule
from fusedtricks.lr_scheduler.batch_size_beta import BatchSizeBeta
from fusedtricks.lr_scheduler.composition import (
    Between,
    Inside,
    Product,
    Sequence,
)
from fusedtricks.lr_scheduler.cycles import Cyclic, OneCycle, WarmRestarts, WarmUpRestarts
from fusedtricks.lr_scheduler.cycling import (
    CosineAnnealingWarmRestarts,
    CosineAnnealingWarmUpRestarts,
    CyclicLR,
    OneCycleLR,
)
from fusedtricks.lr_scheduler.decaying import (
    CosineAnnealingLR,
    ExponentialLR,
    InverseSqrtLR,
    LinearLR,
    PolynomialLR,
    WarmupLR,
    WarmupStableDecayLR,
)
from fusedtricks.lr_scheduler.decays import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    Piecewise,
    Polynomial,
    Step,
)
from fusedtricks.lr_scheduler.functions import Function
from fusedtricks.lr_scheduler.group_schedules import SchedulerOptions
from fusedtricks.lr_scheduler.parsing import parse
from fusedtricks.lr_scheduler.range_test import RangeTest, lr_range_test
from fusedtricks.lr_scheduler.scaling import (
    beta_from_half_life,
    beta_from_time_constant,
    half_life,
    noise_scale,
    scale_beta,
    scale_lr,
    time_constant,
)
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.scheduler import ScheduledLR
from fusedtricks.lr_scheduler.sequences import ChainedScheduler, SequentialLR
from fusedtricks.lr_scheduler.stepping import (
    ConstantLR,
    LambdaLR,
    MultiStepLR,
    PiecewiseLR,
    StepLR,
)
from fusedtricks.lr_scheduler.warmups import (
    ConstantWarmup,
    GradualWarmup,
    LinearWarmup,
    WarmupStableDecay,
)
from fusedtricks.lr_scheduler.weight_decay import (
    NormalizedDecay,
    NormalizedWarmRestarts,
    normalized_weight_decay,
)

__all__ = [
    "BatchSizeBeta",
    "BatchSizeSampler",
    "BatchSizeSchedule",
    "Between",
    "ChainedScheduler",
    "Constant",
    "ConstantLR",
    "ConstantWarmup",
    "Cosine",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineAnnealingWarmUpRestarts",
    "Cyclic",
    "CyclicLR",
    "Exponential",
    "ExponentialLR",
    "Function",
    "GradualWarmup",
    "Inside",
    "InverseSqrt",
    "InverseSqrtLR",
    "LRScheduler",
    "LambdaLR",
    "Linear",
    "LinearLR",
    "LinearWarmup",
    "MultiStepLR",
    "MultiplicativeLR",
    "NormalizedDecay",
    "NormalizedWarmRestarts",
    "OneCycle",
    "OneCycleLR",
    "Piecewise",
    "PiecewiseLR",
    "Polynomial",
    "PolynomialLR",
    "Product",
    "RangeTest",
    "ReduceLROnPlateau",
    "Schedule",
    "ScheduledLR",
    "SchedulerOptions",
    "Sequence",
    "SequentialLR",
    "Step",
    "StepLR",
    "WarmRestarts",
    "WarmUpRestarts",
    "WarmupLR",
    "WarmupStableDecay",
    "WarmupStableDecayLR",
    "beta_from_half_life",
    "beta_from_time_constant",
    "half_life",
    "lr_range_test",
    "noise_scale",
    "normalized_weight_decay",
    "parse",
    "scale_beta",
    "scale_lr",
    "time_constant",
]
