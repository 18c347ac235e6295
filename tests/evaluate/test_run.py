"""evaluate_task: scores that depend on the model and the task and on nothing else, and a record that says so."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmframe import shared_prefix
from mmframe.batch import Batch, Sample
from mmframe.cli.progress_line import ProgressLine
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.evaluate.record import Result
from mmframe.evaluate.run import evaluate_task
from mmframe.evaluation import check_language
from mmframe.images import open_image
from mmframe.loading import LoadedModel
from mmframe.metrics.anls import similarity
from mmframe.sampling import SamplingParams
from tests.cli.served import picture, read_rows, tiny_model

from .tasks import MadeTask, choices, question, questions, texts

TILES = 3


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> MadeTask:
    return questions(tmp_path_factory.mktemp("pictures"), max_tiles=TILES)


@pytest.fixture(scope="module")
def result(vision: MadeTask, model: LoadedModel) -> Result:
    return evaluate_task(vision, model, batch_size=5)


def test_answers_are_those_of_the_engine_alone_and_the_score_is_the_metrics(
    vision: MadeTask, model: LoadedModel, result: Result
) -> None:
    engine, embedder = Engine(model.net, model.processor), model.net.patch_embedder
    scores = []
    for example, row in zip(vision, result.rows, strict=True):
        images = [open_image(path) for path in example.images if isinstance(path, Path)]
        prompt = model.processor.encode_prompt(example.turns, images, embedder, TILES)
        alone = engine.generate([prompt], SamplingParams(max_new_tokens=6))[0]
        scores.append(max(similarity(alone.text, answer) for answer in example.reference["answers"]))
        assert (row["id"], row["answer"], row["tokens"]) == (example.id, alone.text, len(alone.ids))
        assert row["prompt"] == example.prompt and row["images"] == [str(path) for path in example.images]
    assert len({row["answer"] for row in result.rows}) > 10
    assert result.score == pytest.approx(100 * sum(s if s >= 0.5 else 0 for s in scores) / len(scores))


@pytest.mark.parametrize("mode", ["generate", "likelihood", "perplexity"])
def test_neither_batch_size_nor_order_changes_a_digit(vision: MadeTask, model: LoadedModel, mode: str) -> None:
    task = {"generate": vision, "likelihood": choices(), "perplexity": texts()}[mode]
    one = evaluate_task(task, model, batch_size=1)
    other = evaluate_task(task, model, batch_size=5, indices=list(reversed(range(len(task)))))
    assert other.rows == one.rows[::-1]
    assert other.figures == one.figures and one.n == len(task)


def test_questions_of_a_picture_are_asked_together_and_it_runs_once(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen questions, four pictures, each question far from the next about its picture."""
    monkeypatch.setattr(shared_prefix, "LEAST", 1)
    files = [picture(tmp_path / f"{n}.png", 20, 20, seed=n) for n in range(4)]
    task = MadeTask("apart", [question(f"q{n}", "why is it " + "so " * (n % 5), [files[n % 4]]) for n in range(16)])
    alone = evaluate_task(task, model, batch_size=1, max_tiles=1)
    tiles: list[int] = []
    embedder = model.net.patch_embedder
    assert embedder is not None
    with embedder.register_forward_pre_hook(lambda _, given: tiles.append(len(given[0]))):
        together = evaluate_task(task, model, batch_size=4, max_tiles=1)
    assert together.rows == alone.rows and tiles == [1] * 4


def test_options_have_the_likelihood_that_each_has_alone(model: LoadedModel, vision: MadeTask) -> None:
    """The plain way: a row for each option, without branches."""
    task = choices(2)
    pictured = replace(vision[2], options=("red", "a dog"), reference={"answer": 0, "options": ["red", "a dog"]})
    task.examples.append(pictured)
    net, processor = model.net, model.processor
    for example, row in zip(task, evaluate_task(task, model, max_tiles=TILES).rows, strict=True):
        images = [open_image(path) for path in example.images if isinstance(path, Path)]
        prompt = processor.encode_prompt(example.turns, images, net.patch_embedder, TILES)
        for option, (total, count) in zip(example.options, row["answer"], strict=True):
            ids = processor.tokenizer.encode(option)
            whole = Sample.from_ids(
                torch.cat([prompt.ids, torch.tensor(ids)]),
                kinds=torch.cat([prompt.kinds, torch.zeros(len(ids), dtype=torch.int8)]),
                blocks=torch.cat([prompt.blocks, torch.full((len(ids),), -1)]),
                tiles=prompt.tiles if prompt.tiles.numel() else None,
            )
            at = torch.arange(len(prompt) - 1, len(whole) - 1)
            with torch.no_grad():
                logs = net(Batch.collate([whole]), logits_at=at).logits.log_softmax(-1)
            expected = sum(logs[place, token].item() for place, token in enumerate(ids))
            assert count == len(ids) and total == pytest.approx(expected, abs=1e-3)


def test_perplexity_is_that_of_the_language_check(model: LoadedModel) -> None:
    task = texts()
    result = evaluate_task(task, model)
    check = check_language(model.net, model.processor, [example.prompt for example in task])
    assert result.figures["nll"] == pytest.approx(check.nll, rel=1e-5)
    assert result.figures["tokens"] == check.tokens and math.isfinite(result.figures["bits_per_byte"])


def test_what_cannot_be_asked_is_a_row_with_the_reason_and_wrong(model: LoadedModel, tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:60])
    examples = [
        question("good", "what?", [good], answers=["x"]),
        question("broken", "what?", [tmp_path / "broken.png"], answers=["x"]),
        question("long", "long " * 1000, answers=["x"]),
        question("last", "why?", answers=["x"]),
    ]
    result = evaluate_task(MadeTask("some", examples), model, tmp_path / "out", batch_size=4)
    assert (result.n, result.errors) == (4, 2)
    broken, long = result.rows[1:3]
    assert "broken.png" in broken["error"] and "context of" in long["error"]
    assert broken["score"] == {"score": 0.0} and "answer" not in broken
    assert read_rows(tmp_path / "out" / "answers.jsonl") == result.rows

    (tmp_path / "broken.png").write_bytes(good.read_bytes())  # asked again; the others are not
    again = evaluate_task(MadeTask("some", examples), model, tmp_path / "out")
    assert again.errors == 1 and again.extra == {"answered_before": 2}
    with pytest.raises(UserError, match="none of 1 examples could be asked, the first because: .*context of"):
        evaluate_task(MadeTask("none", examples[2:3]), model, tmp_path / "none")
    assert not (tmp_path / "none" / "result.json").exists()


def test_a_long_text_is_not_cut(model: LoadedModel) -> None:
    task = texts(2)
    task.examples.append(question("long", "word " * 1000, bytes=5000))
    result = evaluate_task(task, model)
    assert (result.n, result.errors) == (2, 1) and "more than the context of" in result.rows[2]["error"]


def test_the_record_says_what_was_measured(
    vision: MadeTask, model: LoadedModel, result: Result, tmp_path: Path
) -> None:
    evaluate_task(vision, model, tmp_path, batch_size=2, limit=7)
    record = Result.read(tmp_path)
    assert record.task == "made" and record.metric == {"name": "anls", "version": "1", "spec": vision.metric}
    assert (record.n, record.limit, record.errors, record.unmatched, record.ranks) == (7, 7, 0, 0, 1)
    assert record.decoding == {"max_new_tokens": 6, "stop": [], "temperature": 0} and record.max_tiles == TILES
    assert (record.prompt_digest, record.data_fingerprint) == ("prompt0", "data0")
    assert (record.matcher, record.judge, record.batch_size) == ("rules", None, 2)
    assert record.model["dtype"] == "float32" and len(record.model["weights"]) == 16
    assert record.model["parameters"] == sum(p.numel() for p in model.net.parameters())
    assert set(record.code) == {"mmframe", "revision", "dirty", "torch"} and record.device
    assert record.rows == [] and result.limit is None and len(result.rows) == 21
    assert {file.name for file in tmp_path.iterdir()} == {"result.json", "answers.jsonl", "settings.json"}


def test_the_same_again_is_the_same_to_the_last_bit(vision: MadeTask, model: LoadedModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluate_task(vision, model, tmp_path / name)
    assert (tmp_path / "one/answers.jsonl").read_bytes() == (tmp_path / "two/answers.jsonl").read_bytes()


def test_answers_of_something_else_are_not_mixed(model: LoadedModel, tmp_path: Path) -> None:
    from mmframe.loading import load

    out = tmp_path / "out"
    evaluate_task(questions(tmp_path, 6), model, out)

    def refused(part: str, loaded: LoadedModel = model, count: int = 6, **facts: object) -> None:
        before = (out / "answers.jsonl").read_bytes()
        with pytest.raises(UserError, match=part):
            evaluate_task(questions(tmp_path, count, **facts), loaded, out)
        assert (out / "answers.jsonl").read_bytes() == before

    refused("prompt_digest 'prompt0' -> 'another'", prompt_digest="another")
    refused("data_fingerprint 'data0' -> 'other'", data_fingerprint="other")
    refused("max_tiles 12 -> 1", max_tiles=1)
    refused("has 3 answers beside the 3 asked for, 'q3'", count=3)
    refused("its 6 rows were made with weights", load(tiny_model(tmp_path / "m", kv_heads=1)))
    refused("dtype 'float32' -> 'bfloat16'", load(tiny_model(tmp_path / "m"), dtype=torch.bfloat16))
    evaluate_task(questions(tmp_path, 6, max_tiles=1), model, out, force=True)
    assert (tmp_path / "out.old-1" / "answers.jsonl").exists() and Result.read(out).max_tiles == 1


def test_more_examples_of_the_same_go_on(model: LoadedModel, tmp_path: Path) -> None:
    task = questions(tmp_path, 12)
    evaluate_task(task, model, tmp_path / "out", limit=5)
    longer = evaluate_task(task, model, tmp_path / "out")
    assert longer.extra == {"answered_before": 5} and longer.limit is None
    assert longer.rows == evaluate_task(task, model).rows


def test_one_weight_more_or_less_is_another_model(model_folder: Path, vision: MadeTask, tmp_path: Path) -> None:
    from mmframe.loading import load

    other = load(model_folder)
    with torch.no_grad():
        other.net.get_parameter("backbone.output.weight")[-1, -1] += 1e-3  # far from the first values
    evaluate_task(vision, load(model_folder), tmp_path, limit=2)
    with pytest.raises(UserError, match="were made with weights"):
        evaluate_task(vision, other, tmp_path)


def test_a_split_without_public_answers_is_answered_and_not_scored(model: LoadedModel, tmp_path: Path) -> None:
    task = questions(tmp_path, 4, scored=False)
    stream = io.StringIO()
    result = evaluate_task(task, model, tmp_path / "out", progress=ProgressLine(stream))
    assert "answers of split val are not public" in stream.getvalue()
    assert result.figures == {} and not (tmp_path / "out" / "result.json").exists()
    assert len(read_rows(tmp_path / "out" / "answers.jsonl")) == 4 and "score" not in result.rows[0]


def test_a_judge_scores_what_it_is_asked_and_the_answers_stay_as_they_are(model: LoadedModel, tmp_path: Path) -> None:
    class SaysYes:
        def apply(self, task, metric, rows):  # noqa: ANN001, ANN202
            return [row | {"reference": {"answers": [row["answer"]]}} for row in rows], {"judged": len(rows)}

    task = questions(tmp_path, 4)
    assert evaluate_task(task, model, judge=SaysYes()).matcher == "rules"  # the task has no judge
    task.judge = {"template": "grade"}
    result = evaluate_task(task, model, judge=SaysYes())
    assert (result.score, result.matcher, result.judge) == (100, "judge", {"judged": 4})
    assert result.rows[0]["reference"] == task[0].reference and result.rows[0]["score"] == {"score": 1.0}
    assert evaluate_task(task, model).matcher == "rules"


def test_progress_has_score_rate_and_time_left(model: LoadedModel, tmp_path: Path) -> None:
    stream = io.StringIO()
    evaluate_task(questions(tmp_path, 6), model, batch_size=2, progress=ProgressLine(stream, log_seconds=0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and "made  [######" in lines[0] and " 2/6  anls 0.00  " in lines[0]
    assert "examples/s" in lines[0] and "tok/s" in lines[0] and "left" in lines[0]


def test_the_net_is_left_as_it_was(model: LoadedModel, vision: MadeTask) -> None:
    model.net.train()
    try:
        evaluate_task(vision, model, limit=1)
        assert model.net.training
    finally:
        model.net.eval()


def test_mistakes_are_told_before_the_work(model: LoadedModel, vision: MadeTask, tmp_path: Path) -> None:
    text_only = LoadedModel(replace_embedder(model), model.maybe_processor, {})
    with pytest.raises(UserError, match="task pic: shows pictures, but the model is a text-only LLM"):
        evaluate_task(MadeTask("pic", [vision[1]]), text_only)
    with pytest.raises(UserError, match="metric cider needs captions, which the reference of example 'a' has not"):
        evaluate_task(MadeTask("caps", [question("a", "what?")], "CIDEr"), model)
    with pytest.raises(UserError, match="1 ids stand twice, 'a' the first"):
        evaluate_task(MadeTask("twice", [question("a", "what?"), question("a", "why?")]), model)
    with pytest.raises(UserError, match="has no examples"):
        evaluate_task(MadeTask("empty", []), model)


def replace_embedder(model: LoadedModel):  # noqa: ANN201
    import copy

    net = copy.copy(model.net)
    net._modules = {**model.net._modules, "patch_embedder": None}
    return net
