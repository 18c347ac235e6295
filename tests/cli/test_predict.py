"""`lightning predict`: answers to the validation questions, in the run directory."""

import json

import pytest
import torch

from mmframe.data.prompts import prompts_of
from mmframe.engine import Engine
from mmframe.images import open_image
from mmframe.loading import load
from mmframe.processing import ByteTokenizer, ChatProcessor
from mmframe.sampling import SamplingParams

from ..helpers import tiny_embedder
from .served import picture, read_rows, write_rows


def processor(template="chatml"):
    return ChatProcessor(ByteTokenizer(), template=template, image_start="<img>", image_end="</img>")


def tiles(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def assert_same_row(one, other):
    for name in ("ids", "kinds", "positions", "blocks", "docs", "branches", "tiles"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not (one.labels != -100).any()


@pytest.mark.parametrize("template", ["chatml", "plain", "internlm2-chat"])
def test_a_branch_becomes_the_prompt_of_its_question(template):
    p, embedder = processor(template), tiny_embedder()
    asked = [("what color?", "red"), ("what shape?", "a bar"), ("where?", "left")]
    row = p.encode_branches(asked, [tiles(3)], embedder, max_tiles=3, key="k")
    prompts = prompts_of(row, p.tokenizer)
    assert [prompt.reference for prompt in prompts] == ["red", "a bar", "left"]
    for number, ((question, _), prompt) in enumerate(zip(asked, prompts, strict=True), 1):
        assert_same_row(prompt.sample, p.encode_prompt(question, [tiles(3)], embedder, max_tiles=3))
        assert prompt.sample.key == f"k#{number}" and question in prompt.text


def test_each_answer_of_a_conversation_is_asked_for_with_its_history():
    p, embedder = processor(), tiny_embedder()
    talk = [
        {"from": "human", "value": "<image>\nwhat?"},
        {"from": "gpt", "value": "a cat"},
        {"from": "human", "value": "and <image>?"},
        {"from": "gpt", "value": "a dog"},
    ]
    pictures = [tiles(2), tiles(1, seed=1)]
    one, two = prompts_of(p.encode(talk, pictures, embedder, max_tiles=4), p.tokenizer)
    assert (one.reference, two.reference) == ("a cat", "a dog")
    assert_same_row(one.sample, p.encode_prompt(talk[:1], pictures[:1], embedder, max_tiles=4))
    assert_same_row(two.sample, p.encode_prompt(talk[:3], pictures, embedder, max_tiles=4))


def test_text_alone_and_rows_without_an_answer():
    p, embedder = processor("plain"), tiny_embedder()
    talk = [{"from": "human", "value": "say it"}, {"from": "gpt", "value": "it"}]
    (prompt,) = prompts_of(p.encode(talk, [], embedder, key="k"), p.tokenizer)
    assert prompt.reference == "it" and prompt.sample.key == "k" and not prompt.sample.tiles.numel()
    assert prompts_of(p.encode(talk[:1], [], embedder), p.tokenizer) == []


TRAIN = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false",
         "--trainer.precision=32-true"]  # fmt: skip


def test_predictions_are_those_of_the_engine(cli, elsewhere):
    for number in range(3):
        picture(elsewhere / f"{number}.png", 32, 32, seed=number)
    rows = [
        {"id": "a", "image": "0.png", "questions": [["what color?", "red"], ["what shape?", "bar"]]},
        {"id": "b", "conversations": [{"from": "human", "value": "say it"}, {"from": "gpt", "value": "it"}]},
        {"id": "c", "image": "2.png", "conversations": [{"from": "human", "value": "<image>\nand this?"},
                                                        {"from": "gpt", "value": "no"}]},
    ]  # fmt: skip
    write_rows(elsewhere / "rows.jsonl", rows)
    words = ["--config", "toy/evip_pp", "--stage=s1_1_concept", "--data=ConversationData", "--data.train=rows.jsonl",
             "--data.val=rows.jsonl", "--data.batch_size=2", *TRAIN]  # fmt: skip
    assert cli("fit", *words)[0] == 0
    run = elsewhere / "runs" / "toy" / "evip_pp" / "s1_1_concept"
    before = {file.name for file in run.iterdir()}
    code, out, err = cli("predict", *words)
    assert code == 0, err
    assert {file.name for file in run.iterdir()} - before == {"predictions.jsonl"}
    made = read_rows(run / "predictions.jsonl")
    assert "predictions: 4 answers" in out
    assert [row["reference"] for row in made] == ["red", "bar", "it", "no"]
    assert [row["id"].rpartition(":")[2] for row in made] == ["a#1", "a#2", "b", "c"]

    model = load(run)
    assert model.trained_tiles == 1  # so chat and generate cut pictures as training did
    engine, embedder = Engine(model.net, model.processor), model.net.patch_embedder
    asked = [("what color?", "0.png"), ("what shape?", "0.png"), ("say it", None), ("and this?", "2.png")]
    for row, (question, name) in zip(made, asked, strict=True):
        images = [open_image(elsewhere / name)] if name else []
        (answer,) = engine.generate([model.processor.encode_prompt(question, images, embedder)], SamplingParams())
        assert (row["answer"], row["tokens"]) == (answer.text, len(answer.ids)), question


def test_again_replaces_the_file_and_a_recipe_without_validation_is_told(cli, elsewhere):
    words = ["--config", "toy/dense", "--data.val_size=4", *TRAIN]
    code, _, err = cli("predict", *words)  # as the recipe starts: no weights yet
    assert code == 0 and "as the recipe starts them" in err
    file = elsewhere / "runs" / "toy" / "dense" / "predictions.jsonl"
    first = file.read_text()
    assert len(first.splitlines()) >= 4 and all("answer" in json.loads(line) for line in first.splitlines())
    assert cli("predict", *words)[0] == 0 and file.read_text() == first
    code, _, err = cli("predict", "--config", "toy/dense", "--data.val_size=0", *TRAIN)
    assert code == 2 and "error: data: ToyData has no validation rows" in err.splitlines()[-1]


def test_loader_processes_give_the_same(cli, elsewhere):
    words = ["predict", "--config", "toy/dense", "--data.val_size=4", *TRAIN]
    file = elsewhere / "runs" / "toy" / "dense" / "predictions.jsonl"
    assert cli(*words)[0] == 0
    first = file.read_text()
    assert cli(*words, "--data.num_workers=1")[0] == 0 and file.read_text() == first
