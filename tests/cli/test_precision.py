"""P24: fp16 is refused by name, before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmframe.cli.main import main


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_fp16_is_refused(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "toy/dense", "--run-dir", str(tmp_path), f"--trainer.precision={precision}"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "fp16 gives NaN" in error and "bf16-true" in error
    assert not (tmp_path / "done.json").exists()
