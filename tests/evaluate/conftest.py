"""What tests of evaluation share: tiny models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmframe.loading import LoadedModel, load
from tests.cli.conftest import cli, fails  # noqa: F401  fixtures
from tests.cli.served import tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="session")
def model(model_folder: Path) -> LoadedModel:
    return load(model_folder)
