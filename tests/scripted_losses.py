"""Range tests whose losses are known beforehand."""

import math

import torch
from torch import nn

from fusedtricks.lr_scheduler.range_test import lr_range_test


class Line(nn.Module):
    """A model with two parameters, so that there can be two groups."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs):
        return inputs @ self.weight + self.bias


def given_loss(model, batch):
    """The loss is the batch, whatever the model does."""
    return batch + 0 * model.bias.sum()


def run(losses, **options):
    """Make a range test that meets these losses; return it and the number of steps it made."""
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    n_steps = []
    optimizer.register_step_post_hook(lambda *_: n_steps.append(1))
    options = {
        "start_lr": 0.001,
        "end_lr": 10.0,
        "n_updates": len(losses),
        "smoothing": 0.0,
        "divergence": math.inf,
        "progress": False,
    } | options
    loader = [torch.tensor(loss, dtype=torch.float64) for loss in losses]
    return lr_range_test(model, optimizer, None, loader, batch_loss=given_loss, **options), len(
        n_steps
    )
