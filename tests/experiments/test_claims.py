"""The claims: the rule, the grids that ask them, and the report that says so. Nothing is trained here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.claims.__main__ import chosen, parse
from experiments.claims.claims import CLAIMS, LOSS, Comparison
from experiments.claims.report import read_results, write_report, write_results
from experiments.claims.sweep import drop_weights
from experiments.claims.verdict import Finding, decide, find, verdict
from experiments.modular_vs_monolithic import __main__ as pair
from mmframe.ablate.collect import COLUMNS, write_csv
from mmframe.ablate.grid import preset_names, read_grid
from mmframe.ablate.plan import configs_of
from mmframe.ablate.statistics import paired
from mmframe.ablate.table import Table
from mmframe.ablate.variants import recipe_of, variants
from mmframe.errors import UserError

ROOT = Path(__file__).parents[2]
GRIDS = [
    file
    for file in sorted((ROOT / "experiments").rglob("*.yaml"))
    if re.search("^axes:", file.read_text(encoding="utf-8"), re.MULTILINE)
]


def presets(file: Path) -> list[str | None]:
    return [None, *preset_names(file)]


def test_the_grids_are_found() -> None:
    assert {claim.file for claim in CLAIMS} <= {file.resolve() for file in GRIDS}


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_every_variant_of_every_preset_resolves(file: Path) -> None:
    """All keys, components and arguments are checked, as `mmframe ablate` does before the first run starts."""
    for preset in presets(file):
        grid = read_grid(file, preset)
        for variant in variants(grid):
            configs_of(recipe_of(grid, variant, grid.seeds[0]))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_speaks_of_variants_and_metrics_that_its_grid_has(claim) -> None:  # noqa: ANN001
    for preset in ("night", "h100"):
        grid = read_grid(claim.file, preset)
        names = {variant.id for variant in variants(grid)}
        for comparison in claim.comparisons:
            assert {comparison.better, *comparison.than} <= names, comparison.says
            assert comparison.metric in grid.metrics, comparison.says
        assert len(grid.seeds) >= 3
    assert grid.metrics[0] == claim.comparisons[0].metric == LOSS and LOSS in grid.lower_is_better


def test_fast_asks_the_first_three_claims_and_its_runs_are_shared() -> None:
    assert [claim.name for claim in CLAIMS if "fast" in preset_names(claim.file)] == [
        claim.name for claim in CLAIMS[:3]
    ]
    grids = [read_grid(claim.file, "fast") for claim in CLAIMS[:3]]
    firsts = [configs_of(recipe_of(grid, variants(grid)[0], 0)) for grid in grids]
    assert firsts[0] == firsts[1] == firsts[2]
    assert grids[0].evaluators == grids[1].evaluators == grids[2].evaluators


def test_a_shared_start_is_another_one_for_each_seed() -> None:
    grid = read_grid(CLAIMS[0].file, "night")
    starts = [configs_of(recipe_of(grid, variants(grid)[1], seed))[""]["model"]["init_from"] for seed in (0, 2)]
    assert [Path(start).parent.name for start in starts] == ["seed_0", "seed_2"]
    staged = read_grid(next(claim for claim in CLAIMS if claim.name == "stages").file)
    stages = configs_of(recipe_of(staged, variants(staged)[0], 1))
    kept = [config["model"].get("init_from") for config in stages.values()]
    assert kept[0].endswith("seed_1/weights.safetensors") and kept[1:] == [None] * 3, "later stages follow the chain"


@pytest.mark.parametrize(
    ("values", "better_is", "word"),
    [
        ([-0.30, -0.32, -0.28], "lower", "reproduced"),
        ([0.30, 0.32, 0.28], "lower", "not reproduced"),
        ([0.30, 0.32, 0.28], "higher", "reproduced"),
        ([-0.30, -0.32, -0.28], "higher", "not reproduced"),
        ([-0.30, 0.10, -0.05], "lower", "undecided"),
        ([0.0, 0.0, 0.0], "lower", "undecided"),
        ([-0.30, -0.31], "lower", "not run"),
    ],
)
def test_the_rule(values: list[float], better_is: str, word: str) -> None:
    assert decide(paired(values, [0.0] * len(values)), better_is) == word


def rows(values: dict[str, list[float]], metric: str = LOSS, better: str = "lower") -> list[dict[str, str]]:
    """Rows of a results.csv: variant -> its value for each seed."""
    made = []
    for number, (variant, by_seed) in enumerate(values.items()):
        for seed, value in enumerate(by_seed):
            who = {"grid": "g", "axis": "a", "variant": variant, "baseline": str(int(not number)), "seed": str(seed)}
            who |= {"run": f"{variant}{seed}", "better": "", "note": "", "step": ""}
            made += [
                {**who, "role": "state", "metric": "state", "value": "1"},
                {**who, "role": "metric", "metric": metric, "better": better, "value": str(value)},
                {**who, "role": "fact", "metric": "flops", "value": str(1e12 * (1 + number))},
                {**who, "role": "fact", "metric": "device", "value": "", "note": "a CPU"},
            ]
    return [{column: row[column] for column in COLUMNS} for row in made]


def test_of_several_rates_the_best_is_compared_with() -> None:
    table = Table(rows({"delta": [1.0, 1.1, 0.9], "low": [1.4, 1.5, 1.3], "high": [1.2, 1.3, 1.1]}))
    found = find(Comparison("", "delta", ("low", "high", "not there")), table)
    assert (found.than, found.verdict) == ("high", "reproduced")
    assert found.difference is not None and found.difference.mean == pytest.approx(-0.2)
    table = Table(rows({"delta": [90, 91, 92], "low": [95, 96, 97], "high": [80, 81, 82]}, "text.x", "higher"))
    found = find(Comparison("", "delta", ("low", "high"), "text.x"), table)
    assert (found.than, found.verdict) == ("low", "not reproduced")


def test_what_was_not_run_has_no_verdict() -> None:
    table = Table(rows({"delta": [1.0, 1.1, 0.9]}))
    assert find(Comparison("", "delta", ("full",)), table).verdict == "not run"
    assert find(Comparison("", "delta", ("full",)), None).verdict == "not run"
    assert find(Comparison("", "delta", ("delta",), "text.nll"), table).verdict == "not run"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reproduced", "reproduced", "undecided"], "reproduced"),
        (["reproduced", "undecided", "reproduced"], "undecided"),
        (["reproduced", "not run", "reproduced"], "undecided"),
        (["undecided", "not reproduced", "reproduced"], "not reproduced"),
        (["not run", "not reproduced", "reproduced"], "not run"),
    ],
)
def test_a_claim_of_two_parts_needs_both(words: list[Any], told: str) -> None:
    claim = replace(CLAIMS[0], deciding=2)
    assert verdict(claim, [Finding(Comparison("", "", ()), word) for word in words]) == told


def test_the_report_is_made_from_the_csv_alone(tmp_path: Path) -> None:
    values = {"delta": [1.0, 1.1, 0.9], "embedder_only": [2.0, 2.1, 1.95], "experts_full": [0.9, 0.8, 1.2]}
    write_results("fast", {"visual_experts": rows(values | {"none_full": [0.7, 0.65, 0.95]})}, tmp_path)
    write_results("fast", {"attention_experts": rows({"qkv_ffn": [1.0, 1.2, 0.9], "ffn": [1.1, 1.0, 1.0]})}, tmp_path)
    found = read_results(tmp_path / "claims_fast.csv")
    assert set(found) == {"visual_experts", "attention_experts"}, "claims of an earlier run stay"
    written = write_report("fast", found, tmp_path)
    assert all(file.is_file() for file in written)
    text = (tmp_path / "claims_fast.md").read_text(encoding="utf-8")
    assert "## visual_experts: not reproduced" in text and "## attention_experts: undecided" in text
    assert "## scaling: not run" in text and "753 / 948" in text and "a CPU" in text
    told = json.loads((tmp_path / "claims_fast.json").read_text(encoding="utf-8"))["claims"]
    assert told["visual_experts"]["comparisons"][1]["verdict"] == "reproduced"
    low, high = told["visual_experts"]["comparisons"][0]["interval"]
    assert 0 < low < told["visual_experts"]["comparisons"][0]["difference"] < high


def test_the_pair_has_a_report_too(tmp_path: Path) -> None:
    values = {"monolithic": [1.0, 1.1, 0.9], "modular": [1.4, 1.5, 1.3], "modular_equal_flops": [1.2, 1.3, 1.1]}
    made = rows(values)
    write_csv(tmp_path / "modular_vs_monolithic_quick.csv", COLUMNS, [dict(row) for row in made])
    half = {
        "prompt tokens": 48,
        "prefill FLOPs": 1e10,
        "MiB beyond the weights": 5.0,
        "seconds to first token": 0.1,
        "tokens per second": 20.0,
    }
    sizes = {"parameters": 1, "GiB of weights": 0.9, "one tile": half}
    over = {"first token": {"median": 1.3, "min": 1.2, "max": 1.4}}
    speed = {"monolithic": sizes, "modular": sizes, "modular over monolithic, seconds": {"one tile": over}}
    for file in pair.write("quick", {"device": "a CPU", **speed}, tmp_path):
        assert file.is_file()
    text = (tmp_path / "modular_vs_monolithic_quick.md").read_text(encoding="utf-8")
    assert "| modular | **-0.4 (-0.4 to -0.4)** |" in text and "first token 1.30 (1.20-1.40)" in text
    assert "`modular_equal_flops` over those of `monolithic`: 3.000: **not equal**" in text, "planted: it costs thrice"


def test_weights_of_unfinished_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.claims.sweep.RUNS", tmp_path)
    made = rows({"a": [1.0], "b": [1.0]})
    made[4]["value"] = "0"  # the state of b
    for run in ("a0", "b0"):
        (tmp_path / "fast" / "runs" / run / "s1").mkdir(parents=True)
        (tmp_path / "fast" / "runs" / run / "s1" / "weights.safetensors").touch()
    drop_weights(made, "fast")
    assert [file.parts[-3] for file in tmp_path.rglob("weights.safetensors")] == ["b0"]


def test_a_misspelt_claim_is_named() -> None:
    with pytest.raises(UserError, match="no claim is called 'scalling'; did you mean 'scaling'"):
        chosen(["scalling"])
    assert [claim.name for claim in chosen(parse(["--only", "tiling"]).only)] == ["tiling"]
