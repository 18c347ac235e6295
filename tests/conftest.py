"""Every test starts from the same random state."""

import os
import signal
from pathlib import Path

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


LONGEST = (
    *("cli/test_data_killed.py", "ablate/test_sweep.py", "test_docs.py", "cli/test_chain.py", "test_recipes.py"),
    *("cupy_kernels/test_planted_bugs.py", "cli/test_scripts.py", "cli/test_finetune.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that the workers of `make test` end together."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-expected", action="store_true", help="write the expected losses anew")
