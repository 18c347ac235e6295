"""The evaluators on a toy model: figures that can be worked out by hand, the same again, nothing changed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from components.evaluators.answer_loss import AnswerLoss
from components.evaluators.common import percent, rate
from components.evaluators.held_out import tiles_of
from components.evaluators.text_choice import TextChoice, encoded
from components.evaluators.text_loss import TextLoss
from components.evaluators.visual_questions import VisualQuestions, scores
from mmframe.batch import Batch
from mmframe.contracts import Evaluator
from mmframe.errors import UserError
from mmframe.loading import LoadedModel, load
from mmframe.paths import data_path
from tests.cli.served import picture, tiny_model, write_rows

WORDS = [f"word{n}: the meaning of number {n} in one short line{' more' * (n % 3)}." for n in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, texts, pictures with questions and pictures with captions."""
    made = tmp_path_factory.mktemp("evaluators")
    tiny_model(made)
    write_rows(made / "texts.jsonl", [{"text": text} for text in WORDS])
    asked, said = [], []
    for n in range(3):
        picture(made / f"{n}.png", seed=n)
        asked.append({"id": n, "image": f"{n}.png", "questions": [["Is it red?", "yes"], ["What is it?", f"a {n}"]]})
        said.append({"id": n, "image": f"{n}.png", "caption": f"picture {n}"})
    write_rows(made / "questions.jsonl", asked)
    write_rows(made / "captions.jsonl", said)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(folder)


def evaluators(folder: Path) -> dict[str, Evaluator]:
    sources = {"asked": str(folder / "questions.jsonl"), "said": str(folder / "captions.jsonl")}
    return {
        "text": TextLoss(str(folder / "texts.jsonl"), count=5),
        "choice": TextChoice(str(folder / "texts.jsonl"), items=6),
        "answers": AnswerLoss(sources, records=2),
        "questions": VisualQuestions(str(folder / "questions.jsonl"), max_new_tokens=3),
    }


@torch.no_grad()
def test_each_gives_the_same_finite_figures_again_and_leaves_the_model_alone(folder: Path, model: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    for name, evaluator in evaluators(folder).items():
        first, again = evaluator.evaluate(model), evaluator.evaluate(model)
        assert first == again and first, name
        assert set(first) <= set(evaluator.metrics()), name
        assert evaluator.files() and all(Path(file).is_file() for file in evaluator.files()), name
        assert all(math.isfinite(value) for value in first.values()), name
        json.dumps(first)
    assert not model.net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())


@torch.no_grad()
def test_text_loss_is_the_mean_over_tokens_and_its_digest_sees_one_bit(folder: Path, model: LoadedModel) -> None:
    evaluator = TextLoss(str(folder / "texts.jsonl"), count=3, rows=2)
    found = evaluator.evaluate(model)
    total, count = 0.0, 0
    for text in WORDS[:3]:
        given = Batch.collate([model.processor.encode_text(text)])
        total += float(F.cross_entropy(model.net(given).logits, given.labels[given.supervised], reduction="sum"))
        count += given.supervised.numel()
    assert found["tokens"] == count and found["nll"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    weight = next(p for name, p in model.net.named_parameters() if "text" in name)
    kept = weight.clone()
    weight.view(-1)[0] += 1e-3
    assert evaluator.evaluate(model)["digest"] != found["digest"]
    weight.copy_(kept)
    assert evaluator.evaluate(model)["digest"] == found["digest"]


@torch.no_grad()
def test_choice_scores_the_definition_after_its_word(folder: Path, model: LoadedModel) -> None:
    evaluator = TextChoice(str(folder / "texts.jsonl"), items=6)
    questions = evaluator.questions()
    assert len(questions) == 6 and questions == evaluator.questions()
    meanings = {text for line in WORDS for text in [line.partition(": ")[2].rstrip(".")]}
    assert all(len(texts) == 4 and set(texts) <= meanings for _, texts in questions)
    assert f"{questions[0][0]}: {questions[0][1][0]}." in WORDS, "the first candidate is the right one"
    sample = encoded(model.processor, "word", "its meaning")
    assert model.processor.tokenizer.decode(sample.labels[sample.labels >= 0].tolist()) == " its meaning"
    for normalise in ("tokens", "none", "gain"):
        found = TextChoice(str(folder / "texts.jsonl"), items=6, normalise=normalise).evaluate(model)
        assert found["accuracy_n"] == 6 and 0 <= found["accuracy"] <= 100


@torch.no_grad()
def test_a_model_that_knows_the_words_chooses_right(
    folder: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores planted by hand: the right definition costs half a nat a token after its word, any other a whole one."""

    def planted(model: LoadedModel, samples: list, rows: int) -> list[torch.Tensor]:
        decoded = [model.processor.tokenizer.decode(sample.ids.tolist()) for sample in samples]
        known = [any(text + "." == line for line in WORDS) for text in decoded]
        counts = [int((sample.labels >= 0).sum()) for sample in samples]
        return [torch.full((count,), 0.5 if k else 1.0) for k, count in zip(known, counts, strict=True)]

    monkeypatch.setattr("components.evaluators.text_choice.losses", planted)
    found = TextChoice(str(folder / "texts.jsonl"), items=8).evaluate(model)
    assert found["accuracy"] == 100 and found["accuracy_se"] == 0 and found["margin"] == pytest.approx(0.5)


@torch.no_grad()
def test_answer_loss_of_all_is_that_of_the_sources_weighted_by_tokens(folder: Path, model: LoadedModel) -> None:
    sources = {"asked": str(folder / "questions.jsonl"), "said": str(folder / "captions.jsonl")}
    both = AnswerLoss(sources).evaluate(model)
    alone = {name: AnswerLoss({name: path}).evaluate(model) for name, path in sources.items()}
    assert both["records"] == 6 and both["tokens"] == sum(found["tokens"] for found in alone.values())
    weighted = sum(found["nll"] * found["tokens"] for found in alone.values()) / both["tokens"]
    assert both["nll"] == pytest.approx(weighted)
    for name, found in alone.items():
        assert both[f"{name}_nll"] == found["nll"] and both[f"{name}_nll_se"] == found["nll_se"] > 0
    one_by_one = AnswerLoss(sources, rows=1).evaluate(model)
    assert one_by_one["nll"] == pytest.approx(both["nll"], rel=1e-5)


@torch.no_grad()
def test_questions_count_open_and_yes_no_apart_and_ask_about_black(
    folder: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(net, processor, pictures, asked, max_new_tokens, max_tiles, blind):  # noqa: ANN001, ANN202
        assert len(pictures) == 3
        return ["No" if blind else "Yes" if "red" in one.question else f"a {min(one.image, 1)}" for one in asked]

    monkeypatch.setattr("components.evaluators.visual_questions.answer_questions", answers)
    found = VisualQuestions(str(folder / "questions.jsonl")).evaluate(model)
    assert found["yes_no"] == 100 and found["open"] == pytest.approx(200 / 3) and found["open_n"] == 3
    assert found["all"] == pytest.approx(500 / 6) and found["blind_all"] == 0
    assert scores("", [True], ["yes"]).keys() == {"all", "all_se", "all_n", "yes_no", "yes_no_se", "yes_no_n"}


def test_the_image_budget_is_that_of_training_where_none_is_given(model: LoadedModel) -> None:
    trained = LoadedModel(model.net, model.processor, {"run": {"config": "data: {init_args: {max_tiles: 6}}"}})
    assert tiles_of(trained, None, "x") == 6 and tiles_of(trained, 2, "x") == 2
    with pytest.raises(UserError, match="max_tiles is null"):
        tiles_of(model, None, "AnswerLoss")


def test_standard_errors() -> None:
    values = [1.0, 2.0, 4.0]
    assert rate("x", values, [1, 1, 1]) == {
        "x": pytest.approx(7 / 3),
        "x_se": pytest.approx(torch.tensor(values).std().item() / math.sqrt(3)),
    }
    assert rate("x", [6.0], [3]) == {"x": 2.0}
    assert percent("x", [True, False, True, True]) == {"x": 75.0, "x_se": pytest.approx(21.65, abs=0.01), "x_n": 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnswerLoss({}), "AnswerLoss: sources is empty"),
        (lambda: AnswerLoss({"a": "b.jsonl"}, records=0), "records=0"),
        (lambda: TextLoss(count=0), "count=0"),
        (lambda: TextChoice(normalise="length"), "normalise='length' is not known"),
        (lambda: TextChoice(candidates=1), "candidates=1"),
        (lambda: VisualQuestions(pictures=0), "pictures=0"),
    ],
)
def test_a_mistake_is_named(make, message: str) -> None:  # noqa: ANN001
    with pytest.raises(UserError, match=message):
        make()


def test_data_that_is_not_there_is_named_with_the_command_that_gets_it(
    folder: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMFRAME_OFFLINE_DATA", str(folder / "nothing"))
    assert data_path("offline:wordnet/train.jsonl") == folder / "nothing" / "wordnet" / "train.jsonl"
    with pytest.raises(UserError, match="mmframe data offline .*nothing"):
        TextChoice().evaluate(model)
    with pytest.raises(UserError, match="mmframe data offline .*nothing"):
        AnswerLoss({"numbers": "offline:numbers/val-*.tar"}).evaluate(model)
    with pytest.raises(UserError, match="AnswerLoss: .*picture.bin is no data known by its name"):
        AnswerLoss({"a": str(folder / "picture.bin")}).evaluate(model)
    with pytest.raises(UserError, match="has 40 definitions"):
        TextChoice(str(folder / "texts.jsonl"), items=100).evaluate(model)
