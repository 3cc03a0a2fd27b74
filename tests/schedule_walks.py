"""Optimizers without gradients, and what a scheduler makes of their options step by step."""

import torch

import fusedtricks.lr_scheduler as our_schedulers
from tests.schedule_formulas import close

LRS = (0.3, 0.045)


def make_optimizer(kind="SGD", tensor_lr=False):
    rates = [torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr for lr in LRS]
    groups = [{"params": [torch.zeros(2, requires_grad=True)], "lr": lr} for lr in rates]
    if kind == "SGD":
        return torch.optim.SGD(groups, momentum=0.63)
    return torch.optim.AdamW(groups, betas=(0.71, 0.93))


def values(optimizer):
    """What the optimizer reads: the rate of each group and the momentum that goes with it."""
    return [
        (float(group["lr"]), *(group["betas"] if "betas" in group else [group["momentum"]]))
        for group in optimizer.param_groups
    ]


def walk(module, make, steps, kind="SGD", tensor_lr=False):
    """All values from the first to the one after ``steps`` steps."""
    optimizer = make_optimizer(kind, tensor_lr)
    scheduler = make(module, optimizer)
    seen = []
    for t in range(steps + 1):
        seen.append(values(optimizer))
        assert [float(lr) for lr in scheduler.get_last_lr()] == [lr for lr, *_ in seen[-1]]
        if t < steps:
            optimizer.step()
            scheduler.step()
    return seen


def rates(make, steps):
    """The rates of both groups with our scheduler, also after its end."""
    return [[lr for lr, *_ in at_t] for at_t in walk(our_schedulers, make, steps)]


def follows(make, steps, formula):
    for t, found in enumerate(rates(make, steps)):
        assert found == [close(formula(t, base), base) for base in LRS], t
