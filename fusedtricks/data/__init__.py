"""Data sets that come with their package, and what is done to batches of images."""

from fusedtricks.data.applying import apply_plan
from fusedtricks.data.batch_tricks import BatchTrick, Chain, OneOf
from fusedtricks.data.colour import HSVJitter, PCANoise, hsv_jitter, pca_noise
from fusedtricks.data.digits import Digits, load_digits
from fusedtricks.data.holes import Cutout, cutout
from fusedtricks.data.image_ops import add_noise, random_affine, random_flip, random_shift
from fusedtricks.data.mixing import CutMix, MixUp, cutmix, mixup
from fusedtricks.data.pipelines import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    imagenet_eval_transform,
    imagenet_train_transform,
)
from fusedtricks.data.plan import BatchPlan
from fusedtricks.data.prepare import BatchPreparation, prepare_batch

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BatchPlan",
    "BatchPreparation",
    "BatchTrick",
    "Chain",
    "CutMix",
    "Cutout",
    "Digits",
    "HSVJitter",
    "MixUp",
    "OneOf",
    "PCANoise",
    "add_noise",
    "apply_plan",
    "cutmix",
    "cutout",
    "hsv_jitter",
    "imagenet_eval_transform",
    "imagenet_train_transform",
    "load_digits",
    "mixup",
    "pca_noise",
    "prepare_batch",
    "random_affine",
    "random_flip",
    "random_shift",
]
