"""Every test starts from the same random state."""

import os
import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a background job; the programs that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny matmuls are slower on several threads

import pytest


@pytest.fixture(autouse=True)
def same_random_state() -> None:
    import torch

    torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    for noise in (
        "no `val_dataloader`",
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "in eval mode at",
        "instantiate_classes",
        "The number of training batches",
        "was deprecated in v4",
    ):
        config.addinivalue_line("filterwarnings", f"ignore:.*{noise}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-expected", action="store_true", help="write the expected losses anew")
