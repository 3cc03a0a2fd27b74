"""Fixtures for all tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start():
    """Give every test the same random numbers and leave the thread count as it was."""
    torch.manual_seed(1234)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
