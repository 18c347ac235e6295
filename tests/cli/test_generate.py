"""`mmframe generate`: every row is answered once, in order, whatever happens in between."""

import json
import os
import signal
import time

import pytest

from mmframe.engine import Engine
from mmframe.images import open_image
from mmframe.loading import load
from mmframe.sampling import SamplingParams

from .conftest import start
from .served import picture, read_rows, tiny_model, write_rows

WORDS = "why is the sky so very blue on a day like this one".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(elsewhere):
    """Rows of many lengths: text, one picture, two pictures, a conversation."""
    for number in range(3):
        picture(elsewhere / "in" / f"{number}.png", 20 + 30 * number, 20, seed=number)
    rows = []
    for number in range(21):
        row = {"id": f"r{number}", "prompt": " ".join(WORDS[: 1 + number * 5 % 12])}
        if number % 3 == 1:
            row["image"] = f"{number % 2}.png"
        if number % 5 == 2:
            row["image"] = ["0.png", "2.png"]
        rows.append(row)
    rows[4] = {
        "id": 4,
        "image": "1.png",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nwhat is it?"},
            {"from": "gpt", "value": "a cat"},
            {"from": "human", "value": "and its colour?"},
            {"from": "gpt", "value": "not to be seen by the model"},
        ],
    }
    rows[7] = {"prompt": "a row without an id"}
    return write_rows(elsewhere / "in" / "in.jsonl", rows)


@pytest.fixture
def generate(cli, model):
    def call(data, out, *words):
        code, _, err = cli(
            "generate", "--model", model, "--data", data, "--out", out, "--max-new-tokens=6", "--max-tiles=3", *words
        )
        return code, err

    return call


def one_by_one(model, data, max_new_tokens=6, max_tiles=3):
    """What the engine says to each row alone."""
    loaded = load(model)
    engine = Engine(loaded.net, loaded.processor)
    for row in read_rows(data):
        names = row.get("image", [])
        images = [open_image(data.parent / name) for name in ([names] if isinstance(names, str) else names)]
        asked = row.get("prompt") or row["conversations"][:-1]
        sample = loaded.processor.encode_prompt(asked, images, loaded.net.patch_embedder, max_tiles)
        yield engine.generate([sample], SamplingParams(max_new_tokens=max_new_tokens))[0]


def test_rows_are_answered_in_order_as_they_would_be_alone(generate, model, data, elsewhere):
    code, err = generate(data, "out.jsonl", "--batch-size=2")
    assert code == 0, err
    rows = read_rows(elsewhere / "out.jsonl")
    expected = list(one_by_one(model, data))
    assert [row["answer"] for row in rows] == [completion.text for completion in expected]
    assert [row["tokens"] for row in rows] == [len(completion.ids) for completion in expected]
    assert [row["id"] for row in rows] == [row.get("id", number) for number, row in enumerate(read_rows(data), 1)]
    assert rows[4]["prompt"] == "and its colour?" and rows[7]["id"] == 8
    assert len({row["answer"] for row in rows}) > 5 and rows[0]["finish_reason"] == "length"
    assert "21 rows answered, 0 bad" in err and "-> out.jsonl" in err


def test_nothing_is_left_to_do_the_second_time(generate, data, elsewhere, monkeypatch):
    generate(data, "out.jsonl")
    before = (elsewhere / "out.jsonl").read_bytes()
    monkeypatch.setattr("mmframe.cli.generate.open_model", lambda args: pytest.fail("loaded a model"))
    code, err = generate(data, "out.jsonl")
    assert code == 0 and "21 of 21 rows are there" in err
    assert (elsewhere / "out.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_and_gives_the_bytes_of_an_uninterrupted_one(cli, model, elsewhere):
    rows = [{"id": n, "prompt": " ".join(WORDS[: 1 + n * 7 % 12])} for n in range(150)]
    rows[3] = {"id": 3, "image": "missing.png", "prompt": "what?"}
    write_rows(elsewhere / "in.jsonl", rows)
    words = ["generate", "--model", model, "--data", "in.jsonl", "--batch-size=3", "--max-new-tokens=24",
             "--temperature=0.8", "--out"]  # fmt: skip
    out = elsewhere / "out.jsonl"
    process = start(*words, "out.jsonl", cwd=elsewhere)
    deadline = time.monotonic() + 200
    while not out.exists() or out.read_bytes().count(b"\n") < 30:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = out.read_bytes().count(b"\n")
    assert 30 <= there < 150
    with out.open("ab") as file:  # as if the kill had come in the middle of a write
        file.write(b'{"id": 77, "prompt": "half a')
    code, _, err = cli(*words, "out.jsonl")
    assert code == 0, err
    assert "cut off a last line" in err and f"{there} of 150 rows are there" in err
    assert cli(*words, "whole.jsonl")[0] == 0
    assert out.read_bytes() == (elsewhere / "whole.jsonl").read_bytes()
    assert [row["id"] for row in read_rows(out)] == list(range(150))
    assert "missing.png" in read_rows(out)[3]["error"]


def test_what_is_drawn_does_not_depend_on_the_batch(generate, data, elsewhere):
    for size in (1, 8):
        assert generate(data, f"{size}.jsonl", f"--batch-size={size}", "--temperature=1", "--top-p=0.9")[0] == 0
    generate(data, "other.jsonl", "--temperature=1", "--top-p=0.9", "--seed=500")
    answers = [[row["answer"] for row in read_rows(elsewhere / f"{name}.jsonl")] for name in ("1", "8", "other")]
    assert answers[0] == answers[1] != answers[2]


def test_bad_rows_are_told_counted_and_kept(generate, elsewhere):
    picture(elsewhere / "good.png")
    (elsewhere / "corrupt.png").write_bytes((elsewhere / "good.png").read_bytes()[:60])
    data = write_rows(
        elsewhere / "in.jsonl",
        [
            {"id": "good", "image": "good.png", "prompt": "what?"},
            '{"id": "cut off',
            "[1, 2]",
            {"id": "missing", "image": "nowhere.png", "prompt": "what?"},
            {"id": "corrupt", "image": "corrupt.png", "prompt": "what?"},
            {"id": "long", "prompt": "long " * 1000},
            {"id": "empty", "prompt": "  "},
            {"id": "neither"},
            {"id": "counts", "image": ["good.png", "good.png"], "prompt": "one <image>"},
            {"id": "open", "conversations": [{"from": "gpt", "value": "hello"}]},
            {"id": "good too", "prompt": "what?"},
        ],
    )
    code, err = generate(data, "out.jsonl", "--batch-size=11")
    rows = read_rows(elsewhere / "out.jsonl")
    assert code == 0 and "2 rows answered, 9 bad" in err
    assert [row["id"] for row in rows] == ["good", 2, 3, "missing", "corrupt", "long", "empty", "neither", "counts",
                                           "open", "good too"]  # fmt: skip
    assert ["error" in row for row in rows] == [False, *[True] * 9, False]
    for row, part in zip(rows[1:-1], ("not JSON", "no JSON object", "nowhere.png", "corrupt.png", "context of", "empty",
                                      "either", "placeholders", "does not end"), strict=True):  # fmt: skip
        assert part in row["error"] and row["error"] in err, row
    assert all("\n" not in row["error"] for row in rows[1:-1])


def test_only_bad_rows_are_a_failure(generate, elsewhere):
    data = write_rows(elsewhere / "in.jsonl", [{"id": 1, "prompt": ""}, {"id": 2}])
    for _ in range(2):  # also when there is nothing left to do
        code, err = generate(data, "out.jsonl")
        assert code == 2 and "all 2 rows are bad" in err


def test_answers_of_something_else_are_not_mixed(generate, data, elsewhere):
    generate(data, "out.jsonl")
    lines = (elsewhere / "out.jsonl").read_text().splitlines(keepends=True)
    (elsewhere / "out.jsonl").write_text("".join(lines[:9]))  # not finished

    def refused(*words, rows=data):
        code, err = generate(rows, "out.jsonl", *words)
        assert code == 2 and "--force" in err, err
        return err

    assert "temperature 0.0 -> 0.5" in refused("--temperature=0.5")
    assert "max_tiles 3 -> 1" in refused("--max-tiles=1")
    other = write_rows(elsewhere / "other.jsonl", [{"id": "x", "prompt": "y"}] * 30)
    assert "line 1: is of 'r0', the data has 'x' there" in refused(rows=other)
    changed = [json.loads(line) for line in data.read_text().splitlines()]
    changed[1]["prompt"] = "another one"
    assert "line 2: 'r1' has another prompt" in refused(rows=write_rows(data.with_name("changed.jsonl"), changed))
    assert "holds 9 rows, the data has 1" in refused(rows=write_rows(elsewhere / "short.jsonl", [{"prompt": "y"}]))
    assert (elsewhere / "out.jsonl").read_text() == "".join(lines[:9])

    assert generate(data, "out.jsonl")[0] == 0
    assert (elsewhere / "out.jsonl").read_text() == "".join(lines)
    code, err = generate(data, "out.jsonl", "--temperature=0.5", "--force")
    assert code == 0 and (elsewhere / "out.jsonl.old-1").read_text() == "".join(lines)


def test_other_weights_at_the_same_place_are_noticed(cli, data, elsewhere):
    words = ["generate", "--model", "m", "--data", data, "--out", "out.jsonl", "--max-new-tokens=2", "--max-tiles=1"]
    tiny_model(elsewhere / "m")
    assert cli(*words)[0] == 0
    lines = (elsewhere / "out.jsonl").read_text().splitlines(keepends=True)
    (elsewhere / "out.jsonl").write_text("".join(lines[:4]))
    tiny_model(elsewhere / "m", kv_heads=1)
    code, _, err = cli(*words)
    assert code == 2 and "its 4 rows were made with weights" in err


def test_files_that_are_not_ours_are_left_alone(generate, data, elsewhere):
    (elsewhere / "mine.jsonl").write_text('{"my": "notes"}\n')
    code, err = generate(data, "mine.jsonl")
    assert code == 2 and "mine.jsonl line 1: was not written by mmframe" in err
    (elsewhere / "mine.jsonl").write_text('{"id": "r0", "answer": "of unknown origin"}\n')
    code, err = generate(data, "mine.jsonl")
    assert code == 2 and "does not say what made them" in err
    code, err = generate(data, data)
    assert code == 2 and "is the data itself" in err


def test_two_processes_do_not_write_one_file(generate, data, elsewhere):
    from mmframe.cli.answer_file import AnswerFile

    with AnswerFile(elsewhere / "out.jsonl"):
        code, err = generate(data, "out.jsonl")
    assert code == 2 and "another process writes it" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--data=nowhere.jsonl"], "--data nowhere.jsonl does not exist"),
        (["--data=empty.jsonl"], "--data empty.jsonl holds no rows"),
        (["--data=in.jsonl", "--temperature=-1"], "temperature=-1.0 must be 0 (greedy) or above"),
        (["--data=in.jsonl", "--device=abacus"], "--device abacus: is no device"),
        (["--data=in.jsonl", "--device=cuda:99"], "CUDA devices; use cpu"),
        (["--data=in.jsonl", "--model=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(words, part, fails, model, elsewhere):
    (elsewhere / "empty.jsonl").write_text("\n")
    write_rows(elsewhere / "in.jsonl", [{"prompt": "hello"}])
    assert part in fails("generate", f"--model={model}", "--out=out.jsonl", *words)
