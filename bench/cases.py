"""The questions that the benchmarks ask, and the memory traffic that each answer must move."""

from dataclasses import dataclass

# Every workload is asked these two; the large ones, and the many small tensors, no more.
BASIC_CASES = ("adamw", "adamw-combined")
BASIC_WORKLOADS = ("gpt2_small", "one_64m", "small_2000")


@dataclass(frozen=True)
class Case:
    """One optimizer step to measure.

    Attributes:
        name: Identifier, `<algorithm>[-<what is added>]`.
        title: What a reader calls it.
        algorithm: Class name in `fusedtricks.optim`; in `torch.optim` where torch has it.
        n_states: Float32 state tensors per parameter.
        combined: Clip the global norm and centralize gradients too.
        masters: bfloat16 parameters and gradients, float32 master weights.
        averaged: Move an exponential average of the parameters too.
        contenders: Keys of `bench.contenders.BUILDERS`.
        baseline: The contender that ratios refer to.
    """

    name: str
    title: str
    algorithm: str
    n_states: int
    combined: bool = False
    masters: bool = False
    averaged: bool = False
    contenders: tuple[str, ...] = ("ours", "torch-fused", "torch-foreach", "torch-loop")
    baseline: str = "torch-fused"


CASES = {
    case.name: case
    for case in (
        Case("adamw", "AdamW", "AdamW", 2),
        Case("adamw-combined", "clip + centralize + AdamW", "AdamW", 2, combined=True),
        Case("sgd-combined", "clip + centralize + SGD momentum", "SGD", 1, combined=True),
        Case(
            "adamw-bf16-combined",
            "bf16, fp32 masters: clip + centralize + AdamW",
            "AdamW",
            2,
            combined=True,
            masters=True,
        ),
        Case(
            "adamw-averaged",
            "clip + centralize + AdamW + average of the weights",
            "AdamW",
            2,
            combined=True,
            averaged=True,
            contenders=("ours", "ours-separate", "torch-fused", "torch-foreach", "torch-loop"),
        ),
        # torch has no fused RMSprop and no SGDW.
        Case(
            "rmsprop",
            "RMSprop",
            "RMSprop",
            1,
            contenders=("ours", "torch-foreach", "torch-loop"),
            baseline="torch-foreach",
        ),
        Case(
            "sgdw",
            "SGDW against our SGD",
            "SGDW",
            1,
            contenders=("ours", "ours-sgd"),
            baseline="ours-sgd",
        ),
        Case("sgd", "SGD momentum", "SGD", 1),
        Case("adagrad", "Adagrad", "Adagrad", 1),
    )
}


def cases_for(workload: str) -> list[str]:
    """Return the names of the cases that a workload is measured on by default."""
    return list(BASIC_CASES if workload in BASIC_WORKLOADS else CASES)


@dataclass(frozen=True)
class Traffic:
    """Bytes per parameter that a step reads and writes.

    Attributes:
        read: Bytes read by the update.
        written: Bytes written by the update.
        before: Bytes moved by passes before the update (statistics, clipping, copies).
    """

    read: int
    written: int
    before: int = 0

    @property
    def total(self) -> int:
        """All bytes per parameter."""
        return self.read + self.written + self.before


def needed_traffic(case: Case) -> Traffic:
    """Return the least traffic of a case: each tensor once, the gradient once more to clip it.

    The update reads gradient, parameter (or master), states and average and writes all but the
    gradient; with masters it writes the bfloat16 copy as well.
    """
    grad = 2 if case.masters else 4
    kept = 4 * (1 + case.n_states + case.averaged)
    copy = 2 if case.masters else 0
    return Traffic(grad + kept, kept + copy, grad if case.combined else 0)


def composed_traffic(case: Case) -> Traffic:
    """Return the traffic of torch's fused step with clipping and centralization around it.

    Clipping reads the gradient for the norm (4 bytes), then scales it (8); centralization reads
    it for the means (4), then subtracts them (8). Masters add a copy of the bfloat16 gradient
    (6) and one back to the bfloat16 parameter (6). Averaging reads the parameter (4) and moves the
    average (8).
    """
    kept = 4 * (1 + case.n_states)
    around = 24 * case.combined + 12 * case.masters + 12 * case.averaged
    return Traffic(4 + kept, kept, around)


def traffic_table() -> str:
    """Return the bytes per parameter of every case as plain text."""
    lines = [f"{'case':<22}{'needed':>8}{'torch fused':>13}"]
    for case in CASES.values():
        fused = "torch-fused" in case.contenders
        composed = str(composed_traffic(case).total) if fused else "-"
        lines.append(f"{case.name:<22}{needed_traffic(case).total:>8}{composed:>13}")
    return "\n".join(lines)
