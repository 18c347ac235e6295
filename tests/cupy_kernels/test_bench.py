"""The GPU script where there is no GPU, and the benchmark's way at toy size: no device minute is lost to a typo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cupy_kernels import launch, selection
from experiments.bench import kernel_models, kernels, launch_cost

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(launch.why_not() is None, reason="there is a GPU, and the script would measure")
def test_the_script_compiles_and_stops_where_there_is_no_gpu(tmp_path: Path) -> None:
    before = selection.TABLE.read_bytes()
    environment = os.environ | {"PYTHON": sys.executable}
    ran = subprocess.run(
        [ROOT / "experiments/bench/gpu_check.sh", tmp_path / "out"], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == "no measurement without a CUDA device; everything else was done"
    compiled = (tmp_path / "out" / "compile.log").read_text().splitlines()
    assert len(compiled) == 7 and all(" bytes " in line for line in compiled)
    assert selection.TABLE.read_bytes() == before


def test_the_cost_of_a_launch_is_told_for_each_operator(capsys: pytest.CaptureFixture[str]) -> None:
    launch_cost.main(["--rounds", "1"])
    told = capsys.readouterr().out
    assert [line.split(maxsplit=1)[1] for line in told.splitlines()[1:4]] == ["ffn", "project", "decode_ffn, one token"]


def test_the_benchmark_runs_at_toy_size_and_makes_its_table_and_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measured.json").write_text('{"another device": {}}')
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    monkeypatch.setattr(kernel_models, "PROMPTS", {"256 + 8": (1, 8)})
    monkeypatch.setattr(kernel_models, "CONTEXTS", {8: (0, 8)})
    monkeypatch.setattr(selection, "TABLE", tmp_path / "measured.json")
    figures = kernels.run(torch.device("cpu"), tiny=True, rounds=1, parts=["prefill", "decoding", "training", "models"])
    path = kernels.record(figures)
    assert {f.name for f in tmp_path.iterdir()} == {
        path.name,
        "measured.json",
        "kernels_cpu_rivals.png",
        "kernels_cpu_floor.png",
    }
    assert {"device", "commit", "versions", "ceilings", "prefill", "decoding", "training", "models"} <= set(figures)
    block = figures["prefill"]["FFN block, 40 + 8"]
    assert {f"{way}, us" for way in ("kernels", "slices", "index", "mask", "blend", "floor")} <= set(block)
    ratios = {name for name in block if " over " in name}  # like with like; a mask cannot be captured
    assert {"slices over kernels", "slices over kernels, graph", "mask over kernels"} <= ratios
    assert not {"mask over kernels, graph", "kernels over kernels", "kernels, graph over kernels"} & ratios
    table = json.loads((tmp_path / "measured.json").read_text())
    assert set(table) == {"another device", "cpu"} and set(table["cpu"]) == set(selection.OPERATORS)
    assert [rows for rows, _ in table["cpu"]["ffn"]] == [24, 48]
    assert [rows for rows, _ in table["cpu"]["decode_ffn"]] == [1, 4, 4, 8]


def test_all_ways_of_the_benchmark_compute_the_same() -> None:
    from experiments.bench.kernel_rivals import Routed, candidates

    given = Routed.random(40, 8, 32, 64, torch.device("cpu"))
    sorted_ways = {"kernels", "slices", "grouped"}
    outputs = {name: run() for name, run in candidates(given).items()}
    for name, y in outputs.items():
        y = y if name in sorted_ways else torch.cat([y[40:], y[:40]])
        torch.testing.assert_close(y, outputs["slices"], atol=2e-2, rtol=2e-2, msg=name)


def test_a_part_that_fails_is_named_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(kernels, "prefill", broken)
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    monkeypatch.setattr(selection, "TABLE", tmp_path / "measured.json")
    figures = kernels.run(torch.device("cpu"), True, 1, ["prefill", "decoding"], tmp_path / "so_far.json")
    assert json.loads((tmp_path / "so_far.json").read_text())["decoding"] == figures["decoding"]
    assert figures["failed"] == {"prefill": "RuntimeError: no such instruction"}
    assert kernels.record(figures).is_file() and not selection.TABLE.exists()
