"""P41: an LLM judge is asked, waited for and paid once; what it does not say is never guessed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmframe.errors import UserError
from mmframe.evaluate.judge import JUDGEMENTS, Judge, JudgeFailed
from mmframe.evaluate.judge_endpoint import KEY
from mmframe.evaluate.judge_prompts import EXTRACT, GRADE, TEMPLATES, digest, filled
from mmframe.metrics.anls import ANLS
from mmframe.metrics.judged import VERDICT
from mmframe.metrics.mathvista import MathVistaAccuracy
from mmframe.metrics.mm_vet import MMVetScore
from tests.evaluate.fake_judge import FakeJudge, completion, drip, send, serving

FORK = multiprocessing.get_context("fork")
MM_VET: Any = SimpleNamespace(name="mm_vet", judge={"template": "grade"})
MATHVISTA: Any = SimpleNamespace(name="mathvista", judge={"template": "extract"})


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(KEY, raising=False)


def row(number: int) -> dict[str, Any]:
    reference = {"answer": "one<AND>two", "category": ["rec"]}
    return {"id": f"q{number}", "prompt": f"<image>\nWhat is in {number}?", "answer": f"said {number}"} | {
        "reference": reference
    }


def judge(server: FakeJudge, folder: Path, **options: Any) -> Judge:
    return Judge(server.url, "m", folder / JUDGEMENTS, **{"wait": 0.01, "timeout": 20} | options)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JUDGEMENTS).read_text(encoding="utf-8").splitlines()]


def score(metric: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    metric.update([r["answer"] for r in rows], [r["reference"] for r in rows], [r["id"] for r in rows])
    return metric.compute()


def test_every_answer_is_graded_and_the_record_says_by_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, " secret\n")
    rows = [*map(row, range(20)), {"id": "bad", "error": "picture missing"}]

    def behave(prompt: str, _: int) -> str:
        time.sleep(0.02)
        return " 0.75\n" if "said 7" in prompt else "Grade: 0.5"

    seen = []
    with serving(behave) as server:
        found, record = judge(server, tmp_path, concurrency=3, progress=lambda *n: seen.append(n)).apply(
            MM_VET, MMVetScore(), rows
        )
    assert [r["reference"].get(VERDICT) for r in found[:-1]] == [0.75 if n == 7 else 0.5 for n in range(20)]
    assert found[-1] == rows[-1] and all(VERDICT not in r.get("reference", {}) for r in rows)  # theirs are untouched
    assert record == {
        "model": "m", "served": ["judge-2026-01"], "endpoint": server.url, "prompt_digest": digest(GRADE),
        "judged": 20, "failed": 0,
    }  # fmt: skip
    figures = score(MMVetScore(), found[:-1])
    assert (figures["score"], figures["rec/n"], figures["unmatched"]) == (51.25, 20, 0)
    assert 1 < server.most <= 3 and seen[0] == (0, 20) and seen[-1] == (20, 20)
    assert set(server.keys) == {"Bearer secret"} and "secret" not in (tmp_path / JUDGEMENTS).read_text()
    prompt = next(p for p in server.prompts if "said 3" in p)
    assert prompt.endswith("Question: What is in 3?\nReference: one <AND> two\nAnswer: said 3\nGrade:")
    assert server.asked[0]["temperature"] == 0 and server.asked[0]["model"] == "m"


def mathvista(number: int, said: str, right: str, kind: str = "integer", choices: Any = None) -> dict[str, Any]:
    question = "multi_choice" if choices else "free_form"
    reference = {"answer": right, "question_type": question, "answer_type": kind, "choices": choices, "precision": 1.0}
    return {"id": number, "prompt": f"Question {number}", "answer": said, "reference": reference}


def test_only_what_rules_cannot_read_is_judged(tmp_path: Path) -> None:
    rows = [
        mathvista(0, "It is 14.", "14"),
        mathvista(1, "fourteen", "14"),
        mathvista(2, "between 3 and 4, or [", "[3, 4]", "list"),
        mathvista(3, "the big one", "big dog", "text", ["big dog", "cat"]),
        mathvista(4, "no idea", "1.5", "float"),
        mathvista(5, "3 or 4", "3"),
    ]
    replies = {1: "14", 2: "[3, 4]", 3: "A", 4: "NONE", 5: "Final answer: 4"}

    def behave(prompt: str, _: int) -> str:
        return next(said for number, said in replies.items() if f"Question: Question {number}\n" in prompt)

    with serving(behave) as server:
        found, record = judge(server, tmp_path).apply(MATHVISTA, MathVistaAccuracy(), rows)
    assert record is not None and (record["judged"], record["prompt_digest"]) == (5, digest(EXTRACT))
    assert VERDICT not in found[0]["reference"] and len(server.asked) == 5
    metric = MathVistaAccuracy()
    scored = [metric.score(r["answer"], r["reference"]) for r in found]
    assert [r["score"] for r in scored] == [1, 1, 1, 1, 0, 0]
    assert [r["by"] for r in scored] == ["rules", "judge", "judge", "judge", "rules", "judge"]
    assert score(metric, found)["unmatched"] == 1  # the judge, too, found no answer in it
    assert score(MathVistaAccuracy(), rows)["unmatched"] == 5  # without a judge


def test_a_task_without_a_judge_asks_nothing(tmp_path: Path) -> None:
    with serving(lambda *_: 500) as server:
        task: Any = SimpleNamespace(name="docvqa", judge=None)
        assert judge(server, tmp_path).apply(task, ANLS(), [row(0)]) == ([row(0)], None)
    assert not server.asked and not (tmp_path / JUDGEMENTS).exists()


FAULTS = {
    "busy": 429,
    "broken": 500,
    "slow": lambda handler: time.sleep(0.6),
    "dripping": drip,
    "hangs up": lambda handler: handler.connection.close(),
    "asks to wait": lambda handler: send(handler, 503, b"", Retry_After="0"),
    "page": b"<html><body>502 Bad Gateway</body></html>",
    "half": completion("0.5")[:-20],
    "other JSON": b'{"error": {"message": "overloaded"}}',
    "no text": b'{"choices": [{"message": {"content": null}}]}',
    "list": b"[]",
    "empty": completion(" \n"),
    "words": completion("quite good"),
    "too much": completion("7"),
    "negative": completion("-0.5"),
    "not a number": completion("nan"),
    "cut off": completion("0.1", finish_reason="length"),
    "huge": b" " * (2 << 20),
}


def test_whatever_comes_first_the_verdict_that_follows_counts(tmp_path: Path) -> None:
    names = list(FAULTS)
    rows = [row(number) for number in range(len(names))]

    def behave(prompt: str, before: int) -> Any:
        return "0.5" if before else FAULTS[names[int(prompt.rsplit("said ", 1)[1].split("\n")[0])]]

    with serving(behave) as server:
        found, record = judge(server, tmp_path, timeout=0.5, concurrency=len(names)).apply(MM_VET, MMVetScore(), rows)
    assert record is not None and record["judged"] == len(names)
    assert [r["reference"][VERDICT] for r in found] == [0.5] * len(names)
    assert len(server.asked) == 2 * len(names)
    again = {names[int(line["id"][1:])]: line["temperature"] for line in lines(tmp_path)}
    assert again["words"] == again["empty"] == again["page"] == 0.5  # at 0 it would say the same
    assert again["busy"] == again["slow"] == 0


def test_what_never_gets_a_verdict_is_failed_and_asked_again_alone(tmp_path: Path) -> None:
    rows = [row(number) for number in range(6)]
    mended: list[str] = []

    def behave(prompt: str, _: int) -> Any:
        if mended:
            return mended[0]
        if "said 4" in prompt:
            return lambda handler: send(handler, 400, b'{"error": "prompt too long"}')
        return "It depends." if "said 2" in prompt else "1.0"

    with serving(behave) as server:
        with pytest.raises(JudgeFailed) as error:
            judge(server, tmp_path, attempts=3).apply(MM_VET, MMVetScore(), rows)
        assert (error.value.judged, error.value.failed, error.value.exit_code) == (4, 2, 2)
        assert "no verdict on 2 of 6 answers of mm_vet" in str(error.value) and "same command" in str(error.value)
        asked = [p.rsplit("said ", 1)[1][0] for p in server.prompts]
        assert (asked.count("2"), asked.count("4"), len(asked)) == (3, 1, 8)
        failed = {line["id"]: line["failed"] for line in lines(tmp_path) if "failed" in line}
        assert failed["q2"] == "a reply that is not a number from 0 to 1: 'It depends.'"
        assert failed["q4"] == 'HTTP 400: {"error": "prompt too long"}'
        mended.append("0")
        found, record = judge(server, tmp_path).apply(MM_VET, MMVetScore(), rows)
        assert len(server.asked) == 10 and record is not None and (record["judged"], record["failed"]) == (6, 0)
    assert [r["reference"][VERDICT] for r in found] == [1, 1, 0, 1, 0, 1]


def test_other_questions_answers_and_judges_are_not_taken_for_the_same(tmp_path: Path) -> None:
    with serving(lambda *_: "1") as server:

        def asks(task: Any = MM_VET, model: str = "m", **change: str) -> int:  # fmt: skip
            before = len(server.asked)
            Judge(server.url, model, tmp_path / JUDGEMENTS).apply(task, MMVetScore(), [row(0) | change])
            return len(server.asked) - before

        other: Any = SimpleNamespace(name="mm_vet", judge={"template": "{question}|{reference}|{answer}|"})
        assert (asks(), asks()) == (1, 0)
        assert [asks(answer="x"), asks(prompt="y"), asks(model="n"), asks(other), asks()] == [1, 1, 1, 1, 0]
        assert server.prompts[-1] == "What is in 0?|one <AND> two|said 0|"


def test_a_dead_server_is_given_up_and_a_wrong_key_at_once(tmp_path: Path) -> None:
    rows = [row(number) for number in range(200)]
    with serving(lambda *_: 503) as server:
        with pytest.raises(JudgeFailed, match=r"no verdict on 200 of 200 .*\(\d+ times: HTTP 503\)"):
            judge(server, tmp_path, attempts=2, give_up=3).apply(MM_VET, MMVetScore(), rows)
        assert len(server.asked) < 60
    gone = server
    with pytest.raises(JudgeFailed, match="refused"):
        judge(gone, tmp_path, attempts=1, give_up=3).apply(MM_VET, MMVetScore(), rows)
    for status, way in ((401, f"set the key in {KEY}"), (404, "is the model 'm' served there"), (302, "base URL")):
        said = partial(send, status=status, body=b"", Location="http://127.0.0.1:1/")
        with serving(lambda *_, said=said: said) as server:
            with pytest.raises(UserError, match=rf"HTTP {status}; .*{way}"):
                judge(server, tmp_path).apply(MM_VET, MMVetScore(), rows)
            assert len(server.asked) < 30


def child(url: str, folder: str, rows: list[dict[str, Any]]) -> None:
    Judge(url, "m", Path(folder, JUDGEMENTS), concurrency=3).apply(MM_VET, MMVetScore(), rows)


def test_a_killed_run_goes_on_without_paying_twice(tmp_path: Path) -> None:
    rows = [row(number) for number in range(40)]

    def behave(prompt: str, _: int) -> str:
        time.sleep(0.03)
        return "0.5"

    with serving(behave) as server:
        running = FORK.Process(target=child, args=(server.url, str(tmp_path), rows))
        running.start()
        end = time.monotonic() + 60
        while len(server.asked) < 15 and time.monotonic() < end:
            time.sleep(0.005)
        os.kill(running.pid or 0, signal.SIGKILL)
        running.join()
        kept = [line["id"] for line in lines(tmp_path)]
        assert 0 < len(kept) < 40
        with open(tmp_path / JUDGEMENTS, "ab") as stream:
            stream.write(b'{"key": "abc", "id": "q39", "rep')  # as if the kill had hit a write
        before = len(server.asked)
        found, record = judge(server, tmp_path).apply(MM_VET, MMVetScore(), rows)
        assert record is not None and record["judged"] == 40
        assert len(server.asked) - before == 40 - len(kept)
        assert sorted(line["id"] for line in lines(tmp_path)) == sorted(r["id"] for r in rows)
        assert all(r["reference"][VERDICT] == 0.5 for r in found)


def test_a_file_that_is_no_judges_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / JUDGEMENTS).write_text("hello\n")
    with serving(lambda *_: "1") as server:
        with pytest.raises(UserError, match=r"judge.jsonl line 1: was not written by a judge"):
            judge(server, tmp_path).apply(MM_VET, MMVetScore(), [row(0)])
        assert not server.asked
    assert (tmp_path / JUDGEMENTS).read_text() == "hello\n"


def test_mistakes_are_named_before_anything_is_asked(tmp_path: Path) -> None:
    for url, model, said in (
        ("localhost:8000", "m", "no URL of an endpoint"),
        ("ftp://host/v1", "m", "no URL of an endpoint"),
        ("https://me:secret@host/v1", "m", f"the key in {KEY}"),
        ("https://host/v1", "", "needs --judge-model"),
    ):
        with pytest.raises(UserError, match=said) as error:
            Judge(url, model, tmp_path / JUDGEMENTS)
        assert "secret" not in str(error.value)
    known = Judge("https://host/v1/chat/completions/?api=secret", "m", tmp_path / JUDGEMENTS).endpoint
    assert (known.url, known.name) == ("https://host/v1/chat/completions?api=secret", "https://host/v1")
    for entry, metric, said in (
        ({"template": "grade"}, ANLS(), "its metric anls takes no verdicts"),
        ({"template": "grades"}, MMVetScore(), "did you mean 'grade'"),
        ({}, MMVetScore(), "neither a judge's template"),
        ({"templat": "grade"}, MMVetScore(), "no key 'templat'; did you mean 'template'"),
    ):
        task: Any = SimpleNamespace(name="t", judge=entry)
        with pytest.raises(UserError, match=said):
            Judge("http://127.0.0.1:1/v1", "m", tmp_path / JUDGEMENTS).apply(task, metric, [row(0)])


def test_templates_are_filled_once_and_known_by_their_digest() -> None:
    assert filled("{question} {x} {answer} {", question="{answer}", answer="{question}") == "{answer} {x} {question} {"
    assert all("{question}" in text and text.rstrip().endswith(":") for text in TEMPLATES.values())
    assert {name: digest(text) for name, text in TEMPLATES.items()} == {
        "extract": "f7bf349a561af298",
        "grade": "cbed6dcb6cef5db9",
    }
