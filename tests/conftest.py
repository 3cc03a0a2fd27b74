"""Fixtures for all tests."""

import os

# Test workers share the cores: a thread that waits must not spin. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from tests import devices

devices.prepare()

# Enough for races to show, few enough for one worker per core.
N_THREADS = 2


@pytest.fixture(autouse=True)
def _same_start():
    """Give every test the same random numbers and the same number of threads."""
    torch.manual_seed(1234)
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(N_THREADS)
