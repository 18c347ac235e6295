"""Both commands from end to end on a toy grid, in real processes: warm start, sweep, CSV, report, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from experiments.claims import __main__ as claims
from experiments.claims import sweep
from experiments.claims.claims import Claim, Comparison
from experiments.modular_vs_monolithic import __main__ as pair
from experiments.modular_vs_monolithic import speed

ROUTED = {"class_path": "ModalityRouter", "init_args": {"experts_at": {"ffn": "all"}}}


def write(file: Path, content: dict) -> Path:
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a claim of two variants and its warm start, in place of the real ones."""
    start = tmp_path / "runs" / "warm_start" / "seed_{seed}" / "weights.safetensors"
    write(tmp_path / "warm_start.yaml", {"base": "toy/dense", "trainer": {"max_steps": 2}})
    write(tmp_path / "monolithic.yaml", {"base": "toy/dense", "model": {"router": ROUTED, "init_from": str(start)}})
    write(tmp_path / "modular.yaml", {"base": "toy/dense", "model": {"init_from": str(start)}})
    grid = {
        "base": "monolithic.yaml",
        "mode": "list",
        "seeds": [0],
        "axes": {"model": {"monolithic": {}, "modular": {"base": "modular.yaml"}}},
        "metrics": ["val/loss"],
        "presets": {"night": {"overrides": {"trainer": {"max_steps": 2, "log_every_n_steps": 1}}}},
    }
    file = write(tmp_path / "pair.yaml", grid)
    comparison = Comparison("experts against none", "monolithic", ("modular",), "val/loss")
    monkeypatch.setattr(claims, "CLAIMS", (Claim("toy", str(file), "Experts help.", "yes", (comparison,)),))
    monkeypatch.setattr(claims, "NEEDED", {})
    monkeypatch.setattr("experiments.claims.report.CLAIMS", claims.CLAIMS)
    monkeypatch.setattr(sweep, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(sweep, "WARM_START", tmp_path / "warm_start.yaml")
    monkeypatch.setattr(pair, "GRID", file)
    monkeypatch.setattr(speed, "RECIPES", tmp_path)
    return tmp_path


@pytest.mark.timeout(900)  # against a hang only
def test_claims_and_pair_run_from_the_command_to_the_report(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    results = ["--results", str(toy / "found")]
    assert claims.main(["--preset", "night", "--jobs", "2", *results]) == 0
    told = capfd.readouterr()
    assert "warm_start/seed_0" in told.out and "2 runs, 0 of them finished; 2 at once" in told.err
    report = (toy / "found" / "claims_night.md").read_text(encoding="utf-8")
    assert "## toy: not run" in report and "experts against none: monolithic - modular | val/loss" in report
    found = json.loads((toy / "found" / "claims_night.json").read_text(encoding="utf-8"))
    assert found["claims"]["toy"]["comparisons"][0]["verdict"] == "not run", "one seed decides nothing"
    assert list((toy / "runs" / "night").rglob("weights.safetensors")) == [], "weights of measured runs are dropped"

    assert pair.main(["--preset", "night", "--rounds", "1", "--jobs", "2", *results]) == 0
    assert "2 runs, 2 of them finished" in capfd.readouterr().err, "the runs of the claims are the pair's"
    report = (toy / "found" / "modular_vs_monolithic_night.md").read_text(encoding="utf-8")
    assert "## Cost of inference" in report and "| one tile | modular |" in report and "- seven tiles: first" in report
