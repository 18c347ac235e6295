"""Every test starts from the same random state."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny matmuls are slower on several threads

import pytest


@pytest.fixture(autouse=True)
def same_random_state() -> None:
    import torch

    torch.manual_seed(0)
