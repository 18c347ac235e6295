"""One folder with every official layout in miniature, for all tests of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tasks.official import OFFICIAL, offline


@pytest.fixture(scope="session")
def official_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What --data DIR names; `offline:` and `demo:` lead into it, too."""
    root = tmp_path_factory.mktemp("official")
    for make in OFFICIAL:
        make(root)
    offline(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFRAME_OFFLINE_DATA", str(root / "offline"))
        patch.setenv("MMFRAME_DEMO_DATA", str(root / "demo"))
        yield root
