"""A model that is hard to put back as it was, and a short range test of it."""

import random

import numpy as np
import torch
from torch import nn

from fusedtricks.lr_scheduler.range_test import lr_range_test


class Noise(nn.Module):
    """Writes all that a module can write to, buffers outside of its state dict among them."""

    def __init__(self):
        super().__init__()
        self.written = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("expanded", torch.arange(3.0).expand(4, 3))
        self.register_buffer("nothing", None)
        self.calls = [0]

    def forward(self, inputs):
        self.hidden += torch.rand(3) + random.random() + np.random.rand()
        self.written.add_(1)
        self.replaced = self.replaced + 1
        self.nothing = torch.ones(1)
        self.calls[0] += 1
        return inputs * (1 + 0.01 * self.hidden.sum())

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state):
        self.calls = state


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def build_model(dtype=torch.float32):
    seed_all(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        Noise(),
        nn.Dropout(0.3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(144, 5),
    ).to(dtype)
    model[0].bias.requires_grad_(False)
    model[5].eval()  # frozen statistics in a model that trains
    return model


def loss_fn(outputs, targets):
    return nn.functional.cross_entropy(outputs.float(), targets)


def short_test(model, optimizer, loader, **options):
    options = {"n_updates": 7, "end_lr": 0.1, "accumulate": 2, "progress": False} | options
    return lr_range_test(model, optimizer, loss_fn, loader, **options)
