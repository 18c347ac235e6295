"""`mmframe evaluate tasks`, and that naming a task loads no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmframe.cli.evaluate_tasks import main
from mmframe.errors import UserError
from mmframe.tasks import task_names

LIGHT = """
import sys
from mmframe.cli.evaluate_tasks import main
assert main(["ls"]) == 0 and main(["show", "docvqa_val"]) == 0
from mmframe.tasks import load_task
task = load_task("mmbench_en_dev", sys.argv[1])
assert len(task) == 6 and task[0].images
heavy = {"torch", "lightning", "PIL", "pyarrow", "huggingface_hub", "components"} & set(sys.modules)
assert not heavy, heavy
"""


def test_listing_and_loading_need_no_torch(official_data: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, str(official_data)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in task_names():
        assert any(line.split()[:1] == [name] for line in lines), name
    assert any(line.split()[:4] == ["mme", "test", "MMEScore", "generate"] for line in lines)
    assert any("docvqa_test" in line and "not scored" in line for line in lines)


def test_show_prints_what_a_variant_resolves_to_and_what_is_asked(
    official_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "infovqa_val", "--data", str(official_data), "--examples", "1"]) == 0
    out = capsys.readouterr().out
    assert "max_tiles: 24" in out and "class_path: ANLS" in out and "extends" not in out
    assert "# 3 examples; prompts " in out and out.count("--- human") == 1
    assert "Answer the question using a single word or phrase." in out


def test_mistakes_are_one_line(official_data: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'show'"):
        main(["shwo", "mme"])
    with pytest.raises(UserError, match="no task 'mmee'.*did you mean 'mme'"):
        main(["show", "mmee"])
    with pytest.raises(UserError, match="unknown flag --dat; did you mean '--data'"):
        main(["show", "mme", "--dat", "x"])
