"""What finished runs become: CSV, table, plots; and what must not be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmframe.ablate.collect import COLUMNS, CURVE_COLUMNS, collect, read_csv, write_csv, write_index
from mmframe.ablate.fairness import check_fair
from mmframe.ablate.grid import Grid
from mmframe.ablate.plan import Run
from mmframe.ablate.report import write_report
from mmframe.ablate.run_folder import RunFolder
from mmframe.ablate.sweep import write_results
from mmframe.ablate.table import markdown
from mmframe.cli.main import main
from mmframe.errors import UserError

from .conftest import pretend, pretend_all

Planned = Callable[..., tuple[Grid, list[Run]]]


def report_of(grid: Grid, runs: list[Run], results: Path) -> str:
    """The Markdown, by way of the CSV, without plots."""
    rows, _ = collect(grid, runs, results)
    write_csv(results / "r.csv", COLUMNS, rows)
    return markdown(read_csv(results / "r.csv", COLUMNS))


def test_the_table_holds_means_paired_differences_and_costs(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned()
    pretend_all(tmp_path, runs)
    report = report_of(grid, runs, tmp_path)
    assert "| none | 3 | 3.1 ± 0.1 |  | baseline |" in report
    assert "| ffn | 3 | 2.9 ± 0.1 | -0.2 (-0.448 to +0.0484) |  |" in report, "4.3027 * 0.1 / sqrt(3) = 0.2484"
    assert "| ffn | 180,512 | 180,512 | 131,360 | 3,200 | 64 | 1e+09 | 1:01 | 1.50 |" in report
    assert "Budget: 64 samples." in report and "Revision: abc." in report and "Not finished" not in report


def test_an_interval_without_zero_is_bold(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned()
    for run in runs:
        pretend(tmp_path, run, 3.0 + run.seed - (0.2 + 0.001 * run.seed if run.variant.id == "ffn" else 0))
    assert "**-0.201 (-0.203 to -0.199)**" in report_of(grid, runs, tmp_path)


def test_the_report_comes_from_the_csv_alone_and_is_the_same_to_the_byte(
    planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, runs = planned()
    pretend_all(tmp_path, runs)
    write_results(grid, runs, tmp_path)
    first = (tmp_path / "grid" / "report.md").read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("results.csv", "curves.csv"):
        (elsewhere / name).write_bytes((tmp_path / "grid" / name).read_bytes())
    assert main(["ablate", "report", str(elsewhere)]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        str(elsewhere / name) for name in ("report.md", "curves.png", "deltas.png")
    ]
    assert (elsewhere / "report.md").read_bytes() == first
    assert all((elsewhere / name).read_bytes()[:4] == b"\x89PNG" for name in ("curves.png", "deltas.png"))
    assert main(["ablate", "report", str(elsewhere / "results.csv")]) == 0
    with pytest.raises(UserError, match="is not there; `mmframe ablate GRID` writes it"):
        write_report(tmp_path / "nowhere")


def test_both_csvs_are_tidy(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned(seeds=[0, 1])
    pretend_all(tmp_path, runs)
    rows, curves = collect(grid, runs, tmp_path)
    write_csv(tmp_path / "r.csv", COLUMNS, rows)
    write_csv(tmp_path / "c.csv", CURVE_COLUMNS, curves)
    back = read_csv(tmp_path / "r.csv", COLUMNS)
    losses = [row for row in back if row["metric"] == "val/loss"]
    assert [(r["axis"], r["variant"], r["seed"], r["step"], r["better"], float(r["value"])) for r in losses] == [
        ("experts", "none", "0", "8", "lower", 3.0), ("experts", "none", "1", "8", "lower", 3.2),
        ("experts", "ffn", "0", "8", "lower", 2.8), ("experts", "ffn", "1", "8", "lower", 2.9),
    ]  # fmt: skip
    points = [
        row for row in read_csv(tmp_path / "c.csv", CURVE_COLUMNS) if row["variant"] == "ffn" and row["seed"] == "0"
    ]
    assert [row["tokens"] for row in points if row["metric"] == "train/loss"] == [str(400 * n) for n in range(1, 9)]
    assert [row["tokens"] for row in points if row["metric"] == "val/loss"] == ["3200"]


def test_tokens_of_a_chain_add_up_over_its_stages(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned(base="toy/evip", seeds=[0], axes={"x": {"a": {}}}, budget={"samples": 256})
    pretend(tmp_path, runs[0], 1.0)
    rows, curves = collect(grid, runs, tmp_path)
    assert [row["tokens"] for row in curves if row["metric"] == "val/loss"] == [3200, 6400, 9600, 12800]
    assert next(row["value"] for row in rows if row["metric"] == "tokens") == 12800


def test_what_failed_or_is_missing_is_in_the_table(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned()
    pretend_all(tmp_path, runs[:4])
    failed = RunFolder(tmp_path, runs[4])
    failed.path.mkdir(parents=True)
    failed.failure.write_text(json.dumps({"attempts": 2, "reason": "exit code 1: out of memory"}))
    report = report_of(grid, runs, tmp_path)
    assert "| ffn | 1 | 2.8 | -0.2 |  |" in report, "one pair: no interval"
    assert "- ffn, seed 1: failed: exit code 1: out of memory\n- ffn, seed 2: not finished" in report


def test_an_index_says_which_run_is_what(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned(seeds=[0])
    other, others = planned(name="other", seeds=[0, 1])
    write_index(tmp_path, grid, runs)
    write_index(tmp_path, other, others)
    write_index(tmp_path, other, others)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index[runs[0].hash] == ["grid: none-s0", "other: none-s0"] and index[others[3].hash] == ["other: ffn-s1"]


def test_runs_that_differ_where_the_grid_does_not_are_refused(planned: Planned, tmp_path: Path) -> None:
    """The recipes are equal there, but a default of the code was another one while one of them trained."""
    _, runs = planned(seeds=[0])
    pretend(tmp_path, runs[0], 3.0)
    pretend(tmp_path, runs[1], 2.9)
    check_fair(tmp_path, runs, {})
    pretend(tmp_path, runs[1], 2.9, eps=1e-6)
    with pytest.raises(UserError) as error:
        check_fair(tmp_path, runs, {})
    line = str(error.value)
    assert line.startswith("run none-s0 (") and "and run ffn-s0 (" in line
    assert "differ in model.optim.init_args.eps, which the grid does not change" in line


def test_runs_that_have_seen_other_data_are_refused(planned: Planned, tmp_path: Path) -> None:
    _, runs = planned(seeds=[0, 1])
    for run in runs:
        pretend(tmp_path, run, 3.0, data={"source a": "10 records", "plan": f"of seed {run.seed}"})
    check_fair(tmp_path, runs, {})
    pretend(tmp_path, runs[3], 3.0, data={"source a": "11 records", "plan": "of seed 1"})
    with pytest.raises(UserError) as error:
        check_fair(tmp_path, runs, {})
    assert "run none-s0" in str(error.value) and "run ffn-s1" in str(error.value)
    assert "have not seen the same data: source a was 10 records, then 11 records" in str(error.value)


def test_runs_whose_data_is_the_axis_may_have_seen_other_data(planned: Planned, tmp_path: Path) -> None:
    axes: dict[str, Any] = {"data": {"all": {}, "half": {"data": {"init_args": {"size": 128}}}}}
    _, runs = planned(axes=axes, seeds=[0])
    pretend(tmp_path, runs[0], 3.0, data={"source a": "10 records"})
    pretend(tmp_path, runs[1], 3.0, data={"source a": "5 records"})
    check_fair(tmp_path, runs, {})


def test_embedders_may_cut_the_same_data_into_other_tokens_but_not_see_other_data(
    planned: Planned, tmp_path: Path
) -> None:
    """The lengths, and the order that follows from them, are the embedder's; the records are not."""
    axes: dict[str, Any] = {
        "embedder": {"as_it_is": {}, "coarse": {"model": {"patch_embedder": {"init_args": {"patch_size": 8}}}}}
    }
    _, runs = planned(axes=axes, seeds=[0])
    seen = {"source a": "10 records", "lengths a": "of 8 tokens", "plan": "one"}
    pretend(tmp_path, runs[0], 3.0, data=seen)
    pretend(tmp_path, runs[1], 2.9, data={**seen, "lengths a": "of 16 tokens", "plan": "another"})
    check_fair(tmp_path, runs, {})
    pretend(tmp_path, runs[1], 2.9, data={**seen, "source a": "9 records"})
    with pytest.raises(UserError, match="source a was 10 records, then 9 records"):
        check_fair(tmp_path, runs, {})


def test_runs_that_were_measured_on_other_files_are_refused(planned: Planned, tmp_path: Path) -> None:
    texts = {"class_path": "TextLoss", "init_args": {"count": 2}}
    grid, runs = planned(seeds=[0], evaluators={"text": texts}, metrics=["text.nll"])
    folders = [pretend(tmp_path, run, 3.0) for run in runs]
    for folder in folders:
        folder.write_measured(texts, {"nll": 3.0}, "content one", 1.0)
    check_fair(tmp_path, runs, grid.evaluators)
    folders[1].write_measured(texts, {"nll": 2.9}, "content two", 1.0)
    with pytest.raises(UserError) as error:
        check_fair(tmp_path, runs, grid.evaluators)
    line = str(error.value)
    assert line.startswith("evaluator 'text' has not measured run none-s0 (") and "and run ffn-s0 (" in line
    assert "on the same files: their content was content one, then content two" in line


def test_the_error_over_items_stands_beside_the_one_over_seeds(planned: Planned, tmp_path: Path) -> None:
    answers = {"class_path": "TextChoice", "init_args": {"items": 4}}
    grid, runs = planned(evaluators={"words": answers}, metrics=["words.accuracy"])
    pretend_all(tmp_path, runs)
    for run, error in zip(runs, (2.0, 2.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        RunFolder(tmp_path, run).write_measured(answers, {"accuracy": 60.0, "accuracy_se": error}, "", 1.0)
    assert "Standard error over the items of one run, mean of the variants: words.accuracy 3." in report_of(
        grid, runs, tmp_path
    )


def test_a_metric_that_was_not_logged_is_a_gap(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned(metrics=["val/loss", "val/nothing"])
    pretend_all(tmp_path, runs)
    assert "| ffn | 3 | 2.9 ± 0.1 | -0.2 (-0.448 to +0.0484) | - | - |  |" in report_of(grid, runs, tmp_path)
