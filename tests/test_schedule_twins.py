"""The schedulers with torch's names and arguments against torch's own, where those are right."""

import pytest
from torch.optim import lr_scheduler as torch_schedulers

import fusedtricks.lr_scheduler as our_schedulers
from tests.schedule_walks import walk

pytestmark = pytest.mark.filterwarnings("ignore:.*the schedule ended:UserWarning")
EXACT = {"rel": 1e-9, "abs": 1e-12}


def same(make, steps, kind="SGD", tensor_lr=False):
    ours = walk(our_schedulers, make, steps, kind, tensor_lr)
    theirs = walk(torch_schedulers, make, steps, kind)
    for t, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
        for group, (our_values, its_values) in enumerate(zip(mine, its, strict=True)):
            assert our_values == pytest.approx(its_values, **EXACT), (t, group)
    assert len({lr for ((lr, *_), *_) in ours}) > 1


# Class, arguments, steps: as many as torch does right.
SIMPLE = [
    ("ConstantLR", {"factor": 0.35, "total_iters": 7}, 12),
    ("ConstantLR", {"factor": 0.9, "total_iters": 1}, 3),
    ("StepLR", {"step_size": 4, "gamma": 0.37}, 30),
    ("StepLR", {"step_size": 1, "gamma": 1.04}, 30),
    ("MultiStepLR", {"milestones": [3, 4, 11, 20], "gamma": 0.41}, 30),
    ("MultiStepLR", {"milestones": [11, 3], "gamma": 0.41}, 15),
    ("MultiStepLR", {"milestones": [3, 3, 8], "gamma": 0.41}, 15),
    ("ExponentialLR", {"gamma": 0.87}, 40),
    ("LinearLR", {"start_factor": 0.2, "end_factor": 0.7, "total_iters": 9}, 15),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 9}, 15),
    ("PolynomialLR", {"total_iters": 11, "power": 2.3}, 15),
    ("PolynomialLR", {"total_iters": 11, "power": 0.6}, 15),
    ("CosineAnnealingLR", {"T_max": 13, "eta_min": 0.021}, 13),
    ("CosineAnnealingLR", {"T_max": 100, "eta_min": 0.0}, 100),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 3, "eta_min": 0.013}, 140),
    ("CosineAnnealingWarmRestarts", {"T_0": 7, "T_mult": 1, "eta_min": 0.013}, 40),
    ("CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 2, "eta_min": 0.013}, 70),
    ("LambdaLR", {"lr_lambda": lambda t: 1 / (1 + t / 3)}, 20),
    ("LambdaLR", {"lr_lambda": [lambda t: 0.9**t, lambda t: 1 + t]}, 20),
]


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize(("name", "arguments", "steps"), SIMPLE)
def test_simple_schedulers(name, arguments, steps, kind, tensor_lr):
    same(lambda module, o: getattr(module, name)(o, **arguments), steps, kind, tensor_lr)


@pytest.mark.parametrize(("name", "arguments"), {n: a for n, a, _ in SIMPLE}.items())
def test_positional_arguments(name, arguments):
    same(lambda module, o: getattr(module, name)(o, *arguments.values()), 5)


def spread(first, second, per_group):
    return [first, second] if per_group else first


@pytest.mark.parametrize("per_group", [False, True], ids=["one", "lists"])
@pytest.mark.parametrize("down", [None, 3, 11])
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "none"])
def test_cyclic(kind, mode, down, per_group):
    def make(module, optimizer):
        return module.CyclicLR(
            optimizer,
            spread(0.013, 0.004, per_group),
            spread(0.41, 0.29, per_group),
            step_size_up=7,
            step_size_down=down,
            mode=mode,
            gamma=0.96,
            cycle_momentum=kind != "none",
            base_momentum=spread(0.77, 0.66, per_group),
            max_momentum=spread(0.97, 0.88, per_group),
        )

    same(make, 60, "AdamW" if kind == "AdamW" else "SGD")


@pytest.mark.parametrize("scale_mode", ["cycle", "iterations"])
def test_cyclic_with_a_scale_of_ones_own(scale_mode):
    def make(module, optimizer):
        return module.CyclicLR(
            *(optimizer, 0.013, 0.41, 5),
            scale_fn=lambda x: 1 / (1 + x),
            scale_mode=scale_mode,
            base_momentum=0.77,
            max_momentum=0.93,
        )

    same(make, 35)


@pytest.mark.parametrize("per_group", [False, True], ids=["one", "lists"])
@pytest.mark.parametrize("three_phase", [False, True], ids=["two phases", "three phases"])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize(("total", "pct_start"), [(30, 0.27), (40, 0.45), (17, 0.125)])
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "none"])
def test_one_cycle(kind, total, pct_start, anneal_strategy, three_phase, per_group):
    def make(module, optimizer):
        return module.OneCycleLR(
            optimizer,
            spread(0.41, 0.29, per_group),
            total_steps=total,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            cycle_momentum=kind != "none",
            base_momentum=spread(0.77, 0.66, per_group),
            max_momentum=spread(0.97, 0.88, per_group),
            div_factor=13.0,
            final_div_factor=170.0,
            three_phase=three_phase,
        )

    # One more, and torch goes on below the last value.
    same(make, total - 1, "AdamW" if kind == "AdamW" else "SGD")


@pytest.mark.parametrize(
    ("total", "pct_start", "three_phase"),
    [
        (20, 0.0, False),
        (20, 0.04, False),
        (2, 0.3, False),
        (3, 0.3, False),
        (10, 0.05, True),
        (20, 0.96, False),
        (20, 1.0, False),
    ],
)
def test_one_cycle_with_hardly_a_phase(total, pct_start, three_phase):
    """Where a phase ends before update 0, torch starts the next one there, and so below its top."""

    def make(module, optimizer):
        return module.OneCycleLR(
            optimizer, 0.41, total_steps=total, pct_start=pct_start, three_phase=three_phase
        )

    same(make, total - 1)


def test_one_cycle_in_epochs():
    same(lambda m, o: m.OneCycleLR(o, 0.41, epochs=3, steps_per_epoch=7, pct_start=0.4), 20)


def test_a_sequence_and_a_chain():
    def sequential(module, optimizer):
        constant = module.ConstantLR(optimizer, factor=0.35, total_iters=20)
        exponential = module.ExponentialLR(optimizer, gamma=0.9)
        return module.SequentialLR(optimizer, [constant, exponential], milestones=[4])

    def chained(module, optimizer):
        constant = module.ConstantLR(optimizer, factor=0.35, total_iters=4)
        exponential = module.ExponentialLR(optimizer, gamma=0.9)
        return module.ChainedScheduler([constant, exponential], optimizer=optimizer)

    def warm(module, optimizer):
        warmup = module.LinearLR(optimizer, start_factor=0.1, total_iters=5)
        cosine = module.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.011)
        return module.SequentialLR(optimizer, [warmup, cosine], milestones=[5])

    same(sequential, 15)
    same(chained, 15)
    same(warm, 14)
