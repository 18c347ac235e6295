"""Tables of results: what stands in which column, what is marked, what has no average, what is never one row."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mmframe.evaluate
from mmframe.cli.evaluate_report import main
from mmframe.errors import UserError
from mmframe.evaluate.answer_rows import category
from mmframe.evaluate.collect import find_results, model_rows
from mmframe.evaluate.compare import clustered
from mmframe.evaluate.published import benchmark, tables
from mmframe.evaluate.report import COLUMNS, as_json, csv_rows, markdown
from mmframe.evaluate.tables import Report, Row, Table, build_report, mean_of

from .made import MONO, answer, mono, result, write


def report_of(*places: Path, limited: bool = False) -> Report:
    return build_report(model_rows(find_results(places)[0]), limited)


def table_of(report: Report, name: str) -> Table:
    return next(table for table in report.tables if table.spec.name == name)


def ours(report: Report, table: str, model: str = "ours") -> Row:
    return next(row for row in table_of(report, table).rows if row.ours and row.name == model)


def test_the_published_averages_are_those_of_the_published_scores() -> None:
    seen = {}
    for spec in tables().values():
        for row in spec.rows:
            if row.average is not None:
                assert mean_of(spec, dict(row.scores)) == pytest.approx(row.average, abs=0.06), row.model
                seen[spec.name, row.model] = round(mean_of(spec, dict(row.scores)), 1)
    assert seen["general", "Mono-InternVL-2B"] == 55.2 and seen["vqa", "Mono-InternVL-2B"] == 70.1
    assert len(seen) == 17
    grades = {row.grade for spec in tables().values() for row in spec.rows}
    assert grades == {"official", "second-hand"}


def test_the_scores_of_the_paper_measured_here_give_the_paper_s_averages(tmp_path: Path) -> None:
    report = report_of(mono(tmp_path))
    for name, average in (("general", 55.2), ("vqa", 70.1)):
        table, row = table_of(report, name), ours(report, name)
        assert list(row.cells) == list(table.spec.columns), "every task found its column"
        value, why = table.average(row)
        assert value is not None and round(value, 1) == average and why == ""
    assert not report.others and not report.left_out and not report.empty


def test_a_row_with_missing_cells_has_no_average_and_says_so(tmp_path: Path) -> None:
    report = report_of(mono(tmp_path, leave_out=["mme", "ccbench_dev"]))
    assert table_of(report, "general").average(ours(report, "general")) == (None, "no average: 2 of 9 missing")
    assert "] no average: 2 of 9 missing" in markdown(report)
    only = report_of(write(tmp_path / "x", result("docvqa_test", "anls")))
    assert only.empty == ["General multimodal"]
    assert "No result of ours for: General multimodal." in markdown(only)


@pytest.mark.parametrize(
    ("task", "changes", "note", "averaged"),
    [
        ("docvqa_val", {"metric": "anls"}, "split val; published: test", True),
        ("docvqa_test", {"metric": "anls", "limit": 100, "n": 100}, "on 100 examples only (--limit 100)", False),
        ("mmvet", {"n": 218, "unmatched": 12}, "matcher=rules, 12 of 218 answers unmatched; published: LLM", False),
        ("mmvet", {"matcher": "judge", "judge": {"model": "g", "failed": 3}}, "judged by g, 3 failed; published", True),
        ("ai2d_test", {"metric": "option_accuracy", "errors": 2}, "2 of 200 examples could not be asked", True),
    ],
)  # fmt: skip
def test_what_is_not_as_published_is_marked(
    tmp_path: Path, task: str, changes: dict[str, Any], note: str, averaged: bool
) -> None:
    metric = changes.pop("metric", "any")
    report = report_of(write(tmp_path, result(task, metric, **changes)), limited=True)
    (row,) = [row for table in report.tables for row in table.rows if row.ours]
    (cell,) = row.cells.values()
    assert any(text.startswith(note) for text in cell.notes) and cell.averaged is averaged
    assert f"] {cell.notes[0]}" in markdown(report) and "| 50.0 [" in markdown(report)


def test_rules_where_a_judge_is_usual_and_parts_of_the_data_enter_no_average(tmp_path: Path) -> None:
    root = mono(tmp_path, leave_out=["mmvet"])
    write(tmp_path, result("mmvet", "mmvet", 40.1))
    report = report_of(root)
    why = table_of(report, "general").average(ours(report, "general"))[1]
    assert why == "no average: MMVet not measured as the published figures were"
    write(tmp_path, result("docvqa_test", "anls", limit=10, n=10))
    report = report_of(root)
    assert report.left_out == ["ours, docvqa_test: 10 examples only (--limit 10)"]
    assert "DocVQA" not in ours(report, "vqa").cells
    report = report_of(root, limited=True)
    assert "DocVQA" in table_of(report, "vqa").average(ours(report, "vqa"))[1]


def test_the_published_split_is_taken_and_the_other_stands_apart(tmp_path: Path) -> None:
    for task, score in (("docvqa_val", 61.0), ("docvqa_test", 60.0)):
        write(tmp_path, result(task, "anls", score))
    write(tmp_path, result("chartqa_test", "exact_match", 9.0))
    report = report_of(tmp_path)
    cells = ours(report, "vqa").cells
    assert cells["DocVQA"].score == 60.0 and list(cells) == ["DocVQA"], "another metric is no figure of ChartQA"
    assert [other.task for other in report.others] == ["chartqa_test", "docvqa_val"]


def test_names_find_their_benchmark_whatever_their_split() -> None:
    assert benchmark("DocVQA_val", "val") == benchmark("docvqa", "test") == "docvqa"
    assert benchmark("mmbench-dev_en", "dev") == "mmbenchen" and benchmark("mmbench_cn", "dev") == "mmbenchcn"
    assert benchmark("test", "test") == "test"
    report_columns = [c for spec in tables().values() for c in spec.columns.values()]
    for task, (metric, _) in MONO.items():
        assert sum(column.takes(result(task, metric)) for column in report_columns) == 1, task
    assert not any(column.takes(result("mmbench_cn", "circular_accuracy", split="dev")) for column in report_columns)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prompt_digest": "p2"}, "prompt_digest"),
        ({"metric": "anls@2"}, "metric"),
        ({"code": {"revision": "def"}}, "code"),
        ({"model": {"dtype": "fp32"}}, "dtype"),
        ({"limit": 5}, "limit"),
    ],
)
def test_results_that_were_not_measured_alike_are_never_one_row(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    write(tmp_path / "a", result("docvqa_test", "anls", 60.0))
    write(tmp_path / "a", result("ai2d_test", "option_accuracy"))
    write(tmp_path / "b", result("docvqa_test", **({"metric": "anls", "score": 60.0} | changes)))
    write(tmp_path / "b", result("chartqa_test", "relaxed_accuracy"))
    rows = model_rows(find_results([tmp_path / "a", tmp_path / "b"])[0])
    assert [(row.name, list(row.results)) for row in rows] == [
        ("ours", ["ai2d_test", "docvqa_test"]),
        ("ours (2)", ["chartqa_test", "docvqa_test"]),
    ], "the folder stays together"
    why = f"same weights as ours, but not one row with it: docvqa_test was measured with another {word}"
    assert why in rows[1].notes
    report = report_of(tmp_path / "a", tmp_path / "b", limited=True)
    assert why in markdown(report)
    assert table_of(report, "vqa").notes == [f"DocVQA: ours and ours (2) differ in {word}: not the same measurement"]


def test_folders_of_the_same_weights_that_agree_are_one_row(tmp_path: Path) -> None:
    for folder, task in (("a", "ai2d_test"), ("b", "chartqa_test")):
        write(tmp_path / folder, result("docvqa_test", "anls", 60.0, batch_size=8 if folder == "a" else 1))
        write(tmp_path / folder, result(task))
    (row,) = model_rows(find_results([tmp_path])[0])
    assert sorted(row.results) == ["ai2d_test", "chartqa_test", "docvqa_test"] and row.notes == []
    write(tmp_path / "c", result("docvqa_test", "anls", 61.0))
    write(tmp_path / "c", result("mme", "mme_score", model={"weights": "w9"}))
    rows = model_rows(find_results([tmp_path])[0])
    assert [row.name for row in rows] == ["ours", "ours (2)", "ours (3)"], "other weights are another row"
    assert rows[1].notes == [
        "same weights as ours, but not one row with it: docvqa_test was measured alike and gave 60 and 61"
    ]


def test_what_was_set_aside_is_no_result_and_a_copy_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, result("docvqa_test", "anls", 60.0))
    write(tmp_path, result("docvqa_test", "anls", 50.0, prompt_digest="p2"), folder="copied").rename(
        folder.with_name("docvqa_test.old-1")
    )
    assert len(find_results([tmp_path])[0]) == 1
    folder.with_name("docvqa_test.old-1").rename(folder.with_name("docvqa_again"))
    rows = model_rows(find_results([tmp_path])[0])
    assert [row.results["docvqa_test"].score for row in rows] == [50.0, 60.0]
    assert "docvqa_test was measured with another prompt_digest" in rows[1].notes[0]


def test_a_row_of_different_revisions_says_so(tmp_path: Path) -> None:
    write(tmp_path, result("docvqa_test", "anls"))
    write(tmp_path, result("ai2d_test", "option_accuracy", code={"revision": "def"}))
    text = markdown(report_of(tmp_path))
    assert "tasks were measured with different code revisions (def: ai2d_test; abc: docvqa_test)" in text


def test_every_form_of_the_report_and_its_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mono(tmp_path)
    write(tmp_path, result("easy_vqa_test", score=91.234, model={"name": "demo", "weights": "w2"}), folder="demo")
    write(tmp_path, result("coco", "cider", float("nan"), model={"name": "demo", "weights": "w2"}), folder="demo")
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "report"
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert out.startswith(text) and out.splitlines()[-1] == str(folder / "radar.png")
    assert "| easy_vqa_test | score  | 200 | 91.23 | -    |" in text and "- demo, coco: score is nan" in text
    assert (folder / "radar.png").read_bytes()[:4] == b"\x89PNG"
    with (folder / "report.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    (mme,) = [row for row in rows if row["column"] == "MME" and row["ours"] == "1"]
    assert float(mme["normalised"]) == 1875 / 28 and mme["task"] == "mme" and mme["folder"] == str(root / "mme")
    assert {row["column"] for row in rows if row["table"] == "other"} == {"easy_vqa_test"}
    (average,) = [row for row in rows if (row["column"], row["table"], row["model"]) == ("Avg", "vqa", "ours")]
    assert round(float(average["score"]), 1) == 70.1
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (row,) = [row for row in data["tables"][0]["rows"] if row["ours"]]
    assert round(row["average"], 1) == 55.2 and row["cells"]["MMVet"]["notes"] == [
        "judged by gpt; published: another judge"
    ]
    assert data["models"][0]["results"]["coco"]["figures"]["score"] is None
    assert main([str(tmp_path / "demo"), f"--out={folder}"]) == 0
    assert not (folder / "radar.png").exists(), "no plot of an earlier report stays"
    assert "no radar.png: it takes 3 benchmarks" in capsys.readouterr().out


def test_a_model_that_is_named_as_a_published_one_is_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mmframe.evaluate import radar

    root = mono(tmp_path, model={"name": "Mono-InternVL-2B"}).with_name("Mono-InternVL-2B")
    report = report_of(root)
    assert [row.ours for row in table_of(report, "vqa").rows if row.name == "Mono-InternVL-2B"] == [False, True]
    radar.draw_radar(tmp_path / "r.png", report, ["Mono-InternVL-2B"])
    assert {row["ours"] for row in csv_rows(report) if row["model"] == "Mono-InternVL-2B"} == {0, 1}
    assert set().union(*csv_rows(report)) == set(COLUMNS) and json.loads(as_json(report))["format"] == 1


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which results"):
        main(["--limited"])
    with pytest.raises(UserError, match="is no folder of results"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="holds no result.json; `mmframe evaluate` writes it"):
        main([str(tmp_path)])
    folder = write(tmp_path, result("mme", "mme_score"))
    with pytest.raises(UserError, match="no published row is called 'Emu4'; did you mean 'Emu3'"):
        main([str(tmp_path), "--rows=Emu4"])
    assert not (tmp_path / "report").exists()
    (tmp_path / "ours" / "half").mkdir()
    (tmp_path / "ours" / "half" / "answers.jsonl").write_text("")
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert f"- {tmp_path / 'ours' / 'half'}: answers without a result: not finished, or a split" in text
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match="only answers, of an evaluation that has not finished"):
        main([str(folder)])


def test_it_runs_without_torch_and_without_a_plot_without_matplotlib(tmp_path: Path) -> None:
    write(tmp_path, result("docvqa_test", "anls"))
    code = (
        "import sys; from mmframe.cli.evaluate_report import main; import mmframe.cli.evaluate_browse;"
        "main([sys.argv[1]]); assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)


def test_the_published_rows_and_the_page_are_in_a_wheel() -> None:
    folder = Path(mmframe.evaluate.__file__).parent
    settings = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    there = {file.name for pattern in settings["package-data"]["mmframe.evaluate"] for file in folder.glob(pattern)}
    assert there == {file.name for file in folder.iterdir() if file.is_file() and file.suffix != ".py"}


def test_a_category_of_several_is_one_text() -> None:
    assert category(answer("x", reference={"category": ["ocr", "math"]})) == "ocr, math"
    assert category(answer("x", reference={"category": 3})) == "3" and category({"id": "x", "error": "no"}) == ""


# Differences of two models.


def pair(
    root: Path, before: list[Any], after: list[Any], task: str = "docvqa_test", **changes: Any
) -> tuple[Path, Path]:
    """Two models' results of one task, by the scores of their answers."""
    made = []
    for name, scores, other in (("a", before, {}), ("b", after, changes)):
        rows = [score if isinstance(score, dict) else answer(str(n), score) for n, score in enumerate(scores)]
        known = [row["score"]["score"] for row in rows if "score" in row and "score" in row["score"]]
        score = 100 * sum(known) / len(rows)
        write(root, result(task, "anls", score, model={"name": name, "weights": name}, **other), rows)
        made.append(root / name)
    return made[0], made[1]


def test_the_difference_has_a_paired_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = pair(tmp_path, [0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.5, 1.0])
    assert main(["--diff", str(one), str(other)]) == 0
    out = capsys.readouterr().out
    # differences 100, 0, 0, -50, 100: mean 30, sd 67.08, t(4) = 2.776: +- 83.29
    assert "| 40.00 | 70.00 | +30.00 | +30.00 (-53.29 to +113.29) | 5     | 1           | 2           |" in out
    pair(tmp_path, [0.0] * 40, [1.0] * 39 + [0.0])
    main(["--diff", str(one), str(other)])
    assert "**+97.50 (" in capsys.readouterr().out, "an interval without zero is bold"


def test_answers_about_one_picture_are_one_cluster() -> None:
    same = clustered([100.0, 100.0, 0.0, 0.0], ["x", "x", "y", "y"])
    free = clustered([100.0, 100.0, 0.0, 0.0], [1, 2, 3, 4])
    assert same.mean == free.mean == 50 and same.high - same.low > 4 * (free.high - free.low)
    assert clustered([1.0, 2.0], ["x", "x"]).low != clustered([1.0, 2.0], ["x", "x"]).low, (
        "NaN: one cluster tells nothing"
    )


def test_only_answers_over_the_same_data_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = pair(tmp_path, [1.0], [0.0], data_fingerprint="changed")
    main(["--diff", str(one), str(other)])
    out = capsys.readouterr().out
    assert "[1] other data: the scores cannot be compared" in out and "| -      " in out
    one, other = pair(tmp_path, [1.0, 0.0, 1.0], [0.0, 1.0], prompt_digest="p2")
    main(["--diff", str(one), str(other)])
    out = capsys.readouterr().out
    assert "not measured alike: they differ in prompt_digest" in out
    assert "1 examples were answered by one of them only" in out
    write(one.parent, result("mme", model={"name": "c"}), folder="c")
    with pytest.raises(UserError, match="no task in common: docvqa_test and mme"):
        main(["--diff", str(one), str(one.parent / "c")])
    with pytest.raises(UserError, match="has two results of docvqa_test"):
        main(["--diff", str(one), str(one.parent)])


def test_a_figure_of_all_answers_at_once_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [answer("1", {"words": ["a"], "captions": [["a"]]}), {"id": "2", "error": "no picture"}]
    one, other = pair(tmp_path, rows, rows, task="coco")
    main(["--diff", str(one), str(other)])
    assert "the figure is made of all answers at once: no interval" in capsys.readouterr().out
    (other / "coco" / "answers.jsonl").write_text('{"id": "1"}\n{"id"')
    with pytest.raises(UserError, match="answers.jsonl: line 2 is no answer"):
        main(["--diff", str(one), str(other)])
