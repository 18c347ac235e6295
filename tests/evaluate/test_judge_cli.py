"""P41 from the command line: MM-Vet in its official layout, a model, and a judge at the other end of a socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmframe.evaluate.judge import JUDGEMENTS
from mmframe.evaluate.record import Result
from tests.cli.conftest import elsewhere  # noqa: F401  fixture
from tests.evaluate.fake_judge import serving
from tests.tasks.official import mmvet


@pytest.fixture
def words(model_folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    mmvet(elsewhere / "data")
    words = ["evaluate", "--model", str(model_folder), "--tasks=mmvet", "--data=data", "--name=m", "--max-tiles=1"]
    return words


def test_a_judged_score_says_so_and_is_never_mixed_with_one_of_rules(cli, words, elsewhere) -> None:  # noqa: F811
    code, out, err = cli(*words)
    assert code == 0, err
    rules = Result.read(elsewhere / "results/m/mmvet")
    assert (rules.matcher, rules.judge, rules.unmatched) == ("rules", None, 2)

    with serving(lambda prompt, _: "0.5" if "What is x?" in prompt else "0.0") as server:
        judged_words = [*words, "--judge", server.url, "--judge-model=m"]
        code, out, err = cli(*judged_words)
        assert code == 0 and "2 of 2 answers are there" in err, err
        judged = Result.read(elsewhere / "results/m/mmvet")
        assert len(server.asked) == 2 and cli(*judged_words)[0] == 0 and len(server.asked) == 2, "paid once"
    assert judged.matcher == "judge" and judged.judge is not None
    assert (judged.judge["model"], judged.judge["judged"], judged.judge["failed"]) == ("m", 2, 0)
    assert (judged.score, judged.unmatched) == (50.0, 0)
    assert [file.name for file in (elsewhere / "results").rglob(JUDGEMENTS)] == [JUDGEMENTS]
    code, out, _ = cli("evaluate", "report", "results")
    assert code == 0 and "judge" in next(line for line in out.splitlines() if "mmvet" in line and "mm_vet" in line)

    assert cli(*words)[0] == 0  # without a judge again: rules alone, though its verdicts lie there
    again = Result.read(elsewhere / "results/m/mmvet")
    assert (again.matcher, again.judge, again.unmatched, again.figures) == ("rules", None, 2, rules.figures)


def test_a_judge_that_says_nothing_useful_is_one_line_and_the_answers_stay(cli, words, elsewhere) -> None:  # noqa: F811
    with serving(lambda *_: "I would rather not say.") as server:
        code, _, err = cli(*words, "--judge", server.url, "--judge-model=m")
    assert code == 2 and "Traceback" not in err and not (elsewhere / "results/m/mmvet/result.json").exists()
    line = err.strip().splitlines()[-1]
    assert line.startswith("mmframe: error: ") and "2" in line and "judge" in line, err
    with serving(lambda *_: "1.0") as server:
        code, _, err = cli(*words, "--judge", server.url, "--judge-model=m")
    assert code == 0 and "2 of 2 answers are there" in err, err
    assert Result.read(elsewhere / "results/m/mmvet").score == 100.0
