"""`mmframe data plan` and `mmframe data show`."""

from __future__ import annotations

import json
import subprocess
import sys

from PIL import Image


def test_plan_tells_how_full_the_rows_are_and_what_is_left_out(cli, folder):
    code, out, err = cli("data", "plan", "mine.yaml", "--run-dir=r")
    assert code == 0, err
    assert "data plan: mine, epoch 0 of seed 0" in out
    assert "talks" in out and "words" in out and "% image" in out and "left out   1 picture missing" in out
    facts = json.loads((folder / "r/data/plan.json").read_text())
    assert facts["sources"]["talks"]["records"] == 32 and facts["sources"]["talks"]["used"] == 31
    assert facts["fill"] > 0.9 and facts["tokens"]["all"] == sum(s["tokens"] for s in facts["sources"].values())
    assert Image.open(folder / "r/data/plan.png").size[0] > 800
    left = [json.loads(line) for line in (folder / "r/data/quarantine.jsonl").read_text().splitlines()]
    assert [(row["source"], row["reason"]) for row in left] == [("talks", "picture missing")]
    again = cli("data", "plan", "mine.yaml", "--run-dir=r", "--fresh", "--workers=2", "--epoch=3")
    assert again[0] == 0 and "epoch 3" in again[1]


def test_show_draws_what_the_model_is_given(cli, folder):
    code, out, err = cli("data", "show", "mine.yaml", "--run-dir=r", "--count=20")
    assert code == 0, err
    sheet = Image.open(folder / "r/data/show.png")
    colours = {colour for _, colour in sheet.getcolors(2**24)}  # type: ignore[union-attr]
    assert {(0xB7, 0xE4, 0xC7), (0xA9, 0xC9, 0xF0), (0xF6, 0xC6, 0x8A)} <= colours, "learnt, image, boundary"
    code, out, _ = cli("data", "show", "mine.yaml", "--source=words", "--out=words.png")
    assert code == 0 and "words.png" in out and (folder / "words.png").is_file()
    code, out, err = cli("data", "show", "talks.jsonl", "--count=3", "--max_tiles=2", "--out=talks.png")
    assert code == 0 and (folder / "talks.png").is_file(), err


def test_mistakes_are_one_line(fails, folder):
    assert "did you mean 'plan'" in fails("data", "plam")
    assert "did you mean 'talks'" in fails("data", "show", "mine.yaml", "--source=talk")
    assert "--epoch=x must be a number" in fails("data", "plan", "mine.yaml", "--epoch=x")
    assert "not planned" in fails("data", "plan", "toy/dense")
    assert "choose one with --stage" in fails("data", "plan", "toy/evip_pp")
    wrong = fails("data", "plan", "mine.yaml", "--data.sources.talks.anotations=x")
    assert "did you mean 'annotations'" in wrong
    assert "is not a known source" in fails("fit", "mine.yaml", "--data.sources.talks.class_path=JsonRecords")
    assert "nowhere.jsonl" in fails("data", "plan", "mine.yaml", "--data.sources.talks.annotations=nowhere.jsonl")
    many = fails("data", "plan", "mine.yaml", "--data.max_bad_fraction=0.01")
    assert "1 of 52 records cannot be used (1 picture missing)" in many


def test_help_is_quick_and_loads_no_torch(folder):
    code = "import sys; from mmframe.cli.main import main; main(['data', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=folder)
