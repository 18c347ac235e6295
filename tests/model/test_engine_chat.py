"""A conversation over a kept cache gives what a fresh start gives, and costs its new tokens (quirks 2, 17, 19)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmframe import dialogue
from mmframe.batch import Sample
from mmframe.dialogue import Chat
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.generation import run_prompts
from mmframe.processing import ChatProcessor
from mmframe.sampling import SamplingParams
from tests.data.support import FixtureTokenizer
from tests.model.engines import ask, make_engine, make_net, picture
from tests.model.test_reference import tiny_mono

MASKS = pytest.mark.parametrize("attention", ["causal", "image_bidirectional"])
CLOSE: dict[str, Any] = dict(atol=1e-5, rtol=1e-5)
SHORT = SamplingParams(max_new_tokens=9)

Turns = list[tuple[str, list[Image.Image]]]
TURNS: Turns = [
    ("hi", []),
    ("what is that?", [picture(1, (16, 8))]),
    ("and why?", []),
    ("<image> or <image>?", [picture(2), picture(3, (8, 16))]),
    ("thanks", []),
]


class Watched:
    """Logits after each prompt of a chat, and how many tiles were embedded for it."""

    def __init__(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: list[Tensor] = []
        self.prompts: list[Sample] = []
        self.tiles: list[int] = []
        prefill, embedder = chat.prefill, chat.engine.net.patch_embedder
        assert embedder is not None

        def watched(prompt: Sample, tiles: list[Tensor], room: int) -> Tensor:
            counts: list[int] = []
            hook = embedder.register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
            logits = prefill(prompt, tiles, room)
            hook.remove()
            self.tiles.append(sum(counts))
            self.prompts.append(prompt)
            self.logits.append(logits.clone())
            return logits

        monkeypatch.setattr(chat, "prefill", watched)


def fresh_logits(engine: Engine, prompt: Sample) -> Tensor:
    return run_prompts(engine.net, [prompt], engine.net.backbone.new_cache(1, len(prompt)))


def check_turns(engine: Engine, turns: Turns, monkeypatch: pytest.MonkeyPatch) -> tuple[Chat, Watched]:
    """Says every turn; each prompt is that of a fresh start, and so are its logits and the answer."""
    chat = engine.chat(max_tiles=6)
    watched = Watched(chat, monkeypatch)
    for text, images in turns:
        said = "".join(chat.say(text, images, SHORT))
        prompt = watched.prompts[-1]
        again = engine.processor.encode_prompt(chat.history[:-1], chat.images, engine.net.patch_embedder)
        assert torch.equal(prompt.ids, again.ids) and torch.equal(prompt.tiles, again.tiles)
        torch.testing.assert_close(watched.logits[-1], fresh_logits(engine, prompt), **CLOSE)
        assert said == engine.generate([prompt], SHORT)[0].text == chat.history[-1]["value"]
    return chat, watched


@MASKS
@pytest.mark.parametrize("chunk", [None, 7])
def test_every_turn_gives_what_a_fresh_forward_gives(
    attention: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(make_net(attention), prefill_chunk=chunk)
    chat, watched = check_turns(engine, TURNS, monkeypatch)
    assert watched.tiles == [0, 3, 0, 4, 0], "each turn embeds its own pictures and no others"
    assert [turn["from"] for turn in chat.history] == ["human", "gpt"] * 5
    assert len(chat.images) == 3


def test_a_picture_in_the_third_turn_costs_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    chat = engine.chat(max_tiles=6)
    lengths, reused = [], []
    for text, images in [("hi", []), ("and now?", []), ("what is that?", [picture()])]:
        "".join(chat.say(text, images, SHORT))
        lengths.append(chat.prompt_tokens)
        reused.append(chat.reused)
    assert reused[0] == 0
    assert reused[2] >= lengths[1], "the whole conversation so far is kept"
    turn = engine.processor.tokenizer.encode("<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n", special=True)
    assert lengths[2] - reused[2] <= len(turn) + len("\nwhat is that?") + 2 + 4 + 12


def test_beyond_the_context_of_dynamic_ntk_nothing_is_kept_and_all_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base depends on the length there: what was computed for a shorter context is not what a fresh forward
    computes."""
    engine = make_engine(make_net(long=True))
    chat, _ = check_turns(engine, TURNS, monkeypatch)
    assert chat.reused == 0
    # in context, but the cache has room beyond it and keeps its keys raw
    chat, _ = check_turns(make_engine(make_net(context=500)), TURNS, monkeypatch)
    assert chat.reused > 0 and chat._step is not None and chat._step.cache.raw_keys


def test_a_cache_that_is_too_small_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue, "SMALLEST_CACHE", 16)
    chat, _ = check_turns(make_engine(), TURNS, monkeypatch)
    assert chat.reused > 0 and chat._step is not None and chat._step.cache.capacity > 60


def test_the_system_message_and_a_reset() -> None:
    engine = make_engine()
    chat = engine.chat(system="be brief")
    first = "".join(chat.say("hi", [picture()], SHORT))
    "".join(chat.say("more", params=SHORT))
    chat.reset()
    assert chat.history == [{"from": "system", "value": "be brief"}] and chat.images == []
    assert "".join(chat.say("hi", [picture()], SHORT)) == first and chat.reused == 0
    assert "".join(engine.chat().say("hi", [picture()], SHORT)) != first
    no_system = engine.chat(system="")
    "".join(no_system.say("hi", params=SHORT))
    assert no_system.history[0] == {"from": "system", "value": ""}


def test_history_may_be_edited_between_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another picture with the same tokens, an answer taken back: nothing stale is reused."""
    engine = make_engine()
    chat = engine.chat()
    watched = Watched(chat, monkeypatch)
    "".join(chat.say("what is that?", [picture(1)], SHORT))
    "".join(chat.say("sure?", params=SHORT))
    other = engine.processor.cut(picture(2), 8, 1)
    chat.images[0] = other
    "".join(chat.say("really?", params=SHORT))
    assert chat.reused < int((watched.prompts[-1].blocks == 0).nonzero()[0]) + 1
    torch.testing.assert_close(watched.logits[-1], fresh_logits(engine, watched.prompts[-1]), **CLOSE)
    del chat.history[-4:]
    "".join(chat.say("sure then?", params=SHORT))
    torch.testing.assert_close(watched.logits[-1], fresh_logits(engine, watched.prompts[-1]), **CLOSE)
    assert chat.reused > 0


def test_an_answer_that_is_broken_off_stays_as_far_as_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    chat = engine.chat()
    watched = Watched(chat, monkeypatch)
    answer = chat.say("hi", [picture()], SamplingParams(max_new_tokens=50))
    heard = next(answer) + next(answer)  # type: ignore[call-overload]
    answer.close()  # type: ignore[attr-defined]
    assert chat.history[-1] == {"from": "gpt", "value": heard}
    "".join(chat.say("go on", params=SHORT))
    assert chat.reused > 0
    torch.testing.assert_close(watched.logits[-1], fresh_logits(engine, watched.prompts[-1]), **CLOSE)


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_context=160)
    chat = engine.chat()
    first = "".join(chat.say("hi", [picture()], SHORT))
    before = list(chat.history), list(chat.images)
    with pytest.raises(UserError, match="2 <image> in the turn but 1 images"):
        chat.say("<image> and <image>", [picture(2)])
    with pytest.raises(UserError, match="1 <image> in the turn but 0 images"):
        chat.say("<image>")
    with pytest.raises(UserError, match="leave no room for an answer in a context of 160"):
        chat.say("word " * 40)

    def broken(*args: Any) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.net.backbone.layers[1], "attention", broken)  # type: ignore[index, union-attr]
        with pytest.raises(KeyboardInterrupt):
            next(chat.say("what?", [picture(3)], SHORT))
    assert (chat.history, chat.images) == before and first
    watched = Watched(chat, monkeypatch)
    "".join(chat.say("well?", params=SHORT))
    torch.testing.assert_close(watched.logits[-1], fresh_logits(engine, watched.prompts[-1]), **CLOSE)


def test_one_turn_is_a_prompt_of_the_processor() -> None:
    """Placeholders in front where the user wrote none; the tiles are shared among the turn's pictures."""
    engine = make_engine()
    pictures = [picture(1, (24, 8)), picture(2, (8, 32))]
    for text in ("compare", "<image>\nor\n<image>"):
        chat = engine.chat(max_tiles=6)
        said = "".join(chat.say(text, pictures, SHORT))
        assert said == engine.generate([ask(engine, text, pictures, max_tiles=6)], SHORT)[0].text
        assert [len(tiles) for tiles in chat.images] == [4, 4]  # three and the thumbnail each


# ---- on the released layout, where the released code breaks


def reference_engine() -> Engine:
    processor = ChatProcessor(FixtureTokenizer(), "internlm2-chat", image_start="<img>", image_end="</img>")
    return Engine(tiny_mono(), processor)


def test_released_layout_pictures_after_the_first_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code sends them to the text expert: logits differ by 7.9 there."""
    turns: Turns = [("Hi", []), ("What?", [picture(1, (56, 56))]), ("And?", [picture(2, (112, 56))])]
    chat, watched = check_turns(reference_engine(), turns, monkeypatch)
    assert watched.tiles == [0, 1, 3] and chat.reused > 0


def test_released_layout_text_alone() -> None:
    """chat(pixel_values=None) and generate(pixel_values=None) crash in the released code."""
    engine = reference_engine()
    answer = engine.generate([ask(engine, "Hi there")], SHORT)[0]
    assert answer.text == "".join(engine.chat().say("Hi there", params=SHORT))
    assert answer.ids
