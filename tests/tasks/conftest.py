"""One folder with every official layout in miniature, for all tests of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tasks.official import OFFICIAL, offline


@pytest.fixture(scope="session")
def official_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --data DIR names."""
    root = tmp_path_factory.mktemp("official")
    for make in OFFICIAL:
        make(root)
    offline(root)
    return root


@pytest.fixture(scope="module", autouse=True)
def _places(official_data: Path) -> Iterator[None]:
    """`offline:` and `demo:` lead into it, and so does the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFRAME_OFFLINE_DATA", str(official_data / "offline"))
        patch.setenv("MMFRAME_DEMO_DATA", str(official_data / "demo"))
        patch.setenv("XDG_CACHE_HOME", str(official_data / "cache"))
        yield
