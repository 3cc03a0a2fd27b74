"""The steps that are measured on a GPU, the parameter lists, and the order of importance."""

from dataclasses import dataclass

import torch

from bench import cases as cpu_cases
from bench.workloads import WORKLOADS, Shape

PLAIN = ("ours", "ours-triton", "torch-fused", "torch-foreach")
FUSED = ("ours", "ours-triton", "torch-fused", "apex-style", "torch-foreach")


@dataclass(frozen=True)
class Case(cpu_cases.Case):
    """A step to measure on a GPU.

    Attributes:
        dtype: Of parameters and gradients.
        scaled: Gradients are scaled, and unscaled by the step, as with a GradScaler.
    """

    dtype: torch.dtype = torch.float32
    scaled: bool = False


CASES = {
    case.name: case
    for case in (
        Case("adamw", "AdamW", "AdamW", 2, contenders=PLAIN),
        Case(
            "adamw-combined",
            "clip + centralize + AdamW",
            "AdamW",
            2,
            combined=True,
            contenders=FUSED,
        ),
        Case(
            "adamw-averaged",
            "clip + centralize + AdamW + average of the weights",
            "AdamW",
            2,
            combined=True,
            averaged=True,
            contenders=PLAIN,
        ),
        Case(
            "sgd-combined",
            "clip + centralize + SGD momentum",
            "SGD",
            1,
            combined=True,
            contenders=FUSED,
        ),
        # torch has no fused RMSprop, nor Adagrad on GPUs.
        Case(
            "rmsprop-combined",
            "clip + centralize + RMSprop",
            "RMSprop",
            1,
            combined=True,
            contenders=("ours", "ours-triton", "torch-foreach"),
            baseline="torch-foreach",
        ),
        Case(
            "adagrad-combined",
            "clip + centralize + Adagrad",
            "Adagrad",
            1,
            combined=True,
            contenders=("ours", "ours-triton", "torch-foreach"),
            baseline="torch-foreach",
        ),
        Case(
            "adamw-bf16-combined",
            "bf16, fp32 masters: clip + centralize + AdamW",
            "AdamW",
            2,
            combined=True,
            masters=True,
            contenders=FUSED,
            dtype=torch.bfloat16,
        ),
        Case(
            "adamw-fp16-scaled",
            "fp16, fp32 masters: unscale + clip + centralize + AdamW",
            "AdamW",
            2,
            combined=True,
            masters=True,
            contenders=PLAIN,
            dtype=torch.float16,
            scaled=True,
        ),
    )
}

# The most important first: what the time does not suffice for is left out at the end.
TABLES = (
    ("resnet50", "adamw-combined"),
    ("resnet50", "adamw"),
    ("one_g", "adamw-combined"),
    ("resnet50", "sgd-combined"),
    ("resnet50", "adamw-bf16-combined"),
    ("small_2000", "adamw-combined"),
    ("resnet50", "adamw-averaged"),
    ("resnet50", "rmsprop-combined"),
    ("resnet50", "adamw-fp16-scaled"),
    ("resnet50", "adagrad-combined"),
    ("gpt2_small", "adamw-combined"),
    ("vit_b_16", "adamw-combined"),
    ("one_g", "adamw"),
    ("small_2000", "adamw"),
    ("gpt2_small", "adamw-bf16-combined"),
    ("vit_b_16", "adamw-bf16-combined"),
    ("gpt2_small", "adamw"),
    ("vit_b_16", "adamw"),
)


def one_g() -> list[Shape]:
    """Return 40 matrices of 25 million elements: a model far larger than any cache."""
    return [(5000, 5000)] * 40


def shapes_of(workload: str, *, tiny: bool = False) -> list[Shape]:
    """Return the parameter shapes of a workload.

    Args:
        workload: "one_g" or a key of `bench.workloads.WORKLOADS`.
        tiny: Cut to a few small tensors, for rehearsals.
    """
    shapes = one_g() if workload == "one_g" else WORKLOADS[workload]()
    if tiny:
        return [tuple(min(size, 6) for size in shape) for shape in shapes[:12]]
    return shapes


def composed_bytes(case: Case) -> int:
    """Return the bytes per parameter of torch's composition, unscaling in place included."""
    return cpu_cases.composed_traffic(case).total + (8 if case.scaled else 0)


def needed_bytes(case: Case) -> int:
    """Return the least bytes per parameter of a step."""
    return cpu_cases.needed_traffic(case).total


def held_bytes(case: Case) -> int:
    """Return the bytes per parameter that a contender keeps: values, gradients, states."""
    kept = 4 * (1 + case.n_states + case.averaged)
    # The composition with masters also keeps float32 gradients.
    return kept + (2 + 2 + 4 if case.masters else 4)
