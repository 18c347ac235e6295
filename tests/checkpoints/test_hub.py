"""A hub id: fetched through huggingface_hub, or read from its cache; data only, and offline in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

import mmframe
from mmframe.errors import UserError
from mmframe.official import is_hub_id
from tests.checkpoints.support import REFERENCE, check_recorded_logits, run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds one checkpoint, without a network."""
    folder = tmp_path / "hub" / "models--some-org--tiny-mono"
    shutil.copytree(REFERENCE / "mono_v1", folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_checkpoint_of_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_recorded_logits(mmframe.from_pretrained("some-org/tiny-mono").net, "mono_v1")
    assert run("import", "some-org/tiny-mono", tmp_path / "ours") == 0
    check_recorded_logits(mmframe.from_pretrained(f"some-org/tiny-mono@{COMMIT}").net, "mono_v1")


def test_offline_and_unknown_is_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("import", "some-org/other", tmp_path / "ours") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no folder some-org/other here" in line and "the hub cannot be reached" in line


def test_data_alone_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(REFERENCE / "mono_v1")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    mmframe.from_pretrained("some-org/tiny-mono@v1")
    assert (asked["name"], asked["revision"]) == ("some-org/tiny-mono", "v1")
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".py", ".bin", "*"))]

    def fail(name: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no connection\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="go online once"):
        mmframe.from_pretrained("some-org/tiny-mono")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("org/name", True), ("org/na.me-2B@main", True), ("./folder", False), ("/a/b", False), ("name", False),
     ("a/b/c", False), ("../x", False)],
)  # fmt: skip
def test_what_reads_as_a_hub_id(word: str, expected: bool) -> None:
    assert is_hub_id(word) is expected


def test_the_package_offers_it_without_loading_torch() -> None:
    code = "import mmframe, sys; assert 'torch' not in sys.modules; print(mmframe.from_pretrained.__module__)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "mmframe.loading"
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = mmframe.nothing_like_that
