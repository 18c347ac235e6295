"""The lmms-eval bridge over a double of its API: the same prompts, the same answers, nothing passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmframe.batch import Batch
from mmframe.bridges.lmms_eval.decoding import sampling_params
from mmframe.bridges.lmms_eval.messages import read_messages
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.loading import load
from mmframe.sampling import SamplingParams

from ..cli.served import picture, tiny_model
from .lmms_eval_double import import_model, request

TILES = 3


def noise(seed: int, size: tuple[int, int] = (20, 12)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


DOCUMENTS = [
    {"question": "what is it?", "pictures": [noise(0)]},
    {"question": "which of the two pictures is larger, and why?", "pictures": [noise(1), noise(2, (40, 9))]},
    {"question": "no picture at all", "pictures": []},
    {"question": "first <image> then <image>?", "pictures": [noise(3), noise(4)]},
]
KWARGS: list[dict[str, Any]] = [
    {"max_new_tokens": 6, "until": ["\n\n"], "temperature": 0, "do_sample": False, "num_beams": 1},
    {"max_new_tokens": 9, "temperature": 0.2, "do_sample": False, "top_p": None},
    {"max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "seed": 3},
    {"max_new_tokens": 7},
]
PARAMS = [
    SamplingParams(6),
    SamplingParams(9, seed=1),
    SamplingParams(5, temperature=0.7, top_p=0.9, seed=5),
    SamplingParams(7, seed=3),
]


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": one} for one in document["pictures"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), template="chatml")


@pytest.fixture(scope="module")
def engine(weights: Path) -> Engine:
    loaded = load(weights)
    return Engine(loaded.net, loaded.processor)


@pytest.fixture
def open_bridge(weights: Path, monkeypatch: pytest.MonkeyPatch):
    module = import_model(monkeypatch)

    def opened(simple: bool = False, **arguments: Any) -> Any:
        cls = module.MMFrameSimple if simple else module.MMFrame
        model = cls(**{"pretrained": weights, "max_tiles": TILES, "device": "cpu"} | arguments)
        model.task_dict["t"] = {"test": DOCUMENTS}
        return model

    return opened


def prompt(engine: Engine, place: int, system: str | None = None) -> Any:
    question, images = DOCUMENTS[place]["question"], DOCUMENTS[place]["pictures"]
    turns: Any = question
    if system is not None:
        value = "<image>\n" * (0 if "<image>" in question else len(images)) + question
        turns = [{"from": "system", "value": system}, {"from": "human", "value": value}]
    return engine.processor.encode_prompt(turns, images, engine.net.patch_embedder, TILES)


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("batch_size", [1, "3"])
def test_answers_are_those_of_the_engine(open_bridge, engine: Engine, simple: bool, batch_size: Any) -> None:
    model = open_bridge(simple, batch_size=batch_size)
    if simple:
        rows = [(d["question"], k, lambda d: d["pictures"]) for d, k in zip(DOCUMENTS, KWARGS, strict=True)]
    else:
        rows = [("not used", messages, kwargs) for kwargs in KWARGS]
    made = model.generate_until([request(*row, number, "t", "test") for number, row in enumerate(rows)])
    for place, answer in enumerate(made):
        alone = prompt(engine, place)
        (expected,) = engine.generate([alone], PARAMS[place])
        assert answer.text == expected.text, place
        assert answer.token_counts.input_tokens == len(alone)
        assert answer.token_counts.output_tokens == len(expected.ids)
    assert len({answer.text for answer in made}) == 4


def test_a_system_prompt_replaces_the_task_s(open_bridge, engine: Engine) -> None:
    model = open_bridge(system_prompt="Be brief.")
    with_own = [{"role": "system", "content": "Talk a lot."}, *messages(DOCUMENTS[1])]
    (made,) = model.generate_until([request("", lambda _: with_own, KWARGS[1], 1, "t", "test")])
    (expected,) = engine.generate([prompt(engine, 1, "Be brief.")], PARAMS[1])
    assert made.text == expected.text != engine.generate([prompt(engine, 1)], PARAMS[1])[0].text


def test_repeats_of_a_question_draw_answers_of_their_own_whatever_the_batch(open_bridge) -> None:
    asked = [request("", messages, {"max_new_tokens": 8, "temperature": 1.0}, n, "t", "test") for n in (0, 0, 2, 2, 2)]
    said = [answer.text for answer in open_bridge(batch_size=1).generate_until(asked)]
    assert said == [answer.text for answer in open_bridge(batch_size=4).generate_until(asked)]
    assert len(set(said)) == 5


@pytest.mark.parametrize("batch_size", [1, 16])
def test_likelihoods_are_those_of_a_whole_forward(open_bridge, engine: Engine, batch_size: int) -> None:
    likeliest = engine.generate([prompt(engine, 1)], SamplingParams(4))[0].text
    options = [[" cat", "a long dog"], [likeliest, "x"], ["no"]]

    def asked(place: int, text: Any) -> Any:
        return request(DOCUMENTS[place]["question"], text, lambda d: d["pictures"] or None, place, "t", "test")

    requests = [asked(place, text) for place, group in enumerate(options) for text in group]
    requests[-1] = asked(2, lambda _: "no")  # a task may hand over how to make the continuation
    sums = open_bridge(True, loss="sum", batch_size=batch_size).loglikelihood(requests)
    means = open_bridge(True, batch_size=batch_size).loglikelihood(requests)
    expected = [whole_forward(engine, place, text.strip()) for place, group in enumerate(options) for text in group]
    for total, mean, (nll, tokens, greedy) in zip(sums, means, expected, strict=True):
        assert total.text == (pytest.approx(nll, rel=1e-5), greedy)
        assert mean.text == (pytest.approx(nll / tokens, rel=1e-5), greedy)
    assert [greedy for *_, greedy in expected][2]


def whole_forward(engine: Engine, place: int, answer: str) -> tuple[float, int, bool]:
    question, images = DOCUMENTS[place]["question"], DOCUMENTS[place]["pictures"]
    turns = [{"from": "human", "value": "<image>\n" * len(images) + question}, {"from": "gpt", "value": answer}]
    row = engine.processor.encode(turns, images, engine.net.patch_embedder, TILES)
    batch = Batch.collate([row])
    with torch.no_grad():
        logits = engine.net(batch).logits[:-1].float()  # the last predicts the end of the answer
    ids = batch.labels[batch.supervised][:-1]
    nll = float(-logits.log_softmax(-1).gather(1, ids[:, None]).sum())
    return nll, len(ids), bool((logits.argmax(-1) == ids).all())


def test_rounds_go_on_with_what_was_said(open_bridge, engine: Engine) -> None:
    def rounds(document: Any, round_idx: int = 0, previous_output: Any = (), previous_round_info: Any = None) -> Any:
        if not round_idx:
            return messages(document)
        assert previous_round_info == (None if round_idx == 1 else round_idx - 1)
        last = round_idx == (3 if document is DOCUMENTS[0] else 1)
        return [{"role": "user", "content": previous_output[-1]}], last, previous_output, round_idx

    asked = [request("", rounds, {"max_new_tokens": 4}, place, "t", "test") for place in (0, 2)]
    first, second = open_bridge(batch_size=2).generate_until_multi_round(asked)
    assert (len(first), len(second)) == (3, 1)
    following = engine.processor.encode_prompt(first[0], [], engine.net.patch_embedder)
    assert first[1] == engine.generate([following], SamplingParams(4))[0].text
    with pytest.raises(UserError, match="leave out --force_simple"):
        open_bridge(True).generate_until_multi_round(asked)


def test_model_args_go_before_the_command_line_s(open_bridge, weights: Path) -> None:
    cls = type(open_bridge())
    words = f"pretrained={weights},batch_size=5,device=cpu"
    model = cls.create_from_arg_string(words, {"batch_size": 1, "device": None, "max_batch_size": None})
    assert model.batch_size == 5 and model.device == torch.device("cpu")
    assert cls.create_from_arg_string(f"pretrained={weights}", {"batch_size": "2", "device": "cpu"}).batch_size == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"batchsize": 2}, "no argument 'batchsize'; did you mean 'batch_size'?"),
        ({"pretrained": ""}, "which model? add pretrained="),
        ({"batch_size": "auto"}, "batch_size=auto must be a whole number"),
        ({"loss": "max"}, "loss='max'; did you mean 'mean'?"),
        ({"dtype": "fp16"}, "dtype='fp16'"),
    ],
)
def test_a_wrong_argument_is_one_line(open_bridge, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        open_bridge(**arguments)
    assert line in str(caught.value)


def test_a_request_that_cannot_be_asked_names_its_document(open_bridge) -> None:
    video = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": "what?"}]}]
    with pytest.raises(UserError, match="task t, document 2: the task sends video"):
        open_bridge().generate_until([request("", lambda _: video, {}, 2, "t", "test")])
    with pytest.raises(UserError, match="num_beams=4 is not what mmframe does"):  # before anything is answered
        kwargs = [{}, {"num_beams": 4}]
        open_bridge().generate_until([request("", messages, k, n, "t", "test") for n, k in enumerate(kwargs)])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"until": ["\n\n", "Q:"]}, SamplingParams(99, stop=("Q:",))),
        ({"until": "Q:", "stop_sequences": ["\n"]}, SamplingParams(99, stop=("Q:", "\n"))),
        ({"until": None, "temperature": None}, SamplingParams(99)),
        ({"do_sample": True}, SamplingParams(99, temperature=1.0)),
        ({"do_sample": True, "temperature": 0, "top_p": 0}, SamplingParams(99)),
        ({"temperature": 0.5, "top_k": 4}, SamplingParams(99, temperature=0.5, top_k=4)),
        ({"repetition_penalty": 1.2, "image_aspect_ratio": "pad"}, SamplingParams(99, repetition_penalty=1.2)),
    ],
)
def test_kwargs_are_read_as_transformers_reads_them(given: dict[str, Any], expected: SamplingParams) -> None:
    assert sampling_params(given, "task t", 99) == expected


def test_a_blank_line_ends_an_answer_where_it_is_asked_for() -> None:
    assert sampling_params({"until": ["\n\n"]}, "task t", 9, stop_at_blank_line=True).stop == ("\n\n",)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"max_new_token": 4}, "task t: mmframe cannot honour max_new_token=4 of generation_kwargs; did you mean"),
        ({"guidance_scale": 2.0}, "task t: mmframe cannot honour guidance_scale=2.0"),
        ({"temperature": -1.0}, "task t: sampling: temperature=-1.0 must be"),
        ({"num_return_sequences": 2}, "set --gen_kwargs num_return_sequences=1"),
    ],
)
def test_a_kwarg_that_cannot_be_honoured_is_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        sampling_params(given, "task t", 99)
    assert line in str(caught.value)


def test_pictures_stand_where_the_message_has_them(tmp_path: Path) -> None:
    path = str(picture(tmp_path / "a.png"))
    image, text = ({"type": "image", "url": path}, lambda said: {"type": "text", "text": said})
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image, image, text("one or "), image, text("?")]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [image, text("as in <image>, why?")]},
    ]
    turns, images = read_messages(talk, None, "here")
    assert [turn["from"] for turn in turns] == ["system", "human", "gpt", "human"]
    assert turns[1]["value"] == "<image>\n<image>\none or <image>?"
    assert turns[3]["value"] == "as in <image>, why?" and len(images) == 4
    assert read_messages(talk, "", "here")[0][0] == {"from": "system", "value": ""}
    with pytest.raises(UserError, match="here: 1 <image> in the text but 2 pictures"):
        read_messages([{"role": "user", "content": [image, image, text("<image>")]}], None, "here")
    with pytest.raises(UserError, match="here: cannot read the picture .*b.png"):
        read_messages([{"role": "user", "content": [{"type": "image", "url": path[:-5] + "b.png"}]}], None, "here")
