"""Chat templates: each as it is written, and templates of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmframe.catalog import template_names
from mmframe.cli.main import main
from mmframe.errors import UserError
from mmframe.processing import TEMPLATES, ByteTokenizer, ChatProcessor, Template, register_template
from mmframe.processing.templates import get_template
from tests.data.support import embedder, fixture_text, processor

REFERENCE = fixture_text("conversation.json")["template"]
MARKERS = (
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
TALK = [
    {"from": "human", "value": "Q"},
    {"from": "gpt", "value": "A"},
    {"from": "human", "value": "R"},
    {"from": "gpt", "value": "B"},
]
CHATML = (
    "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>"
)
AS_WRITTEN = {
    "plain": "Q\nA</s>R\nB</s>",
    "chatml": CHATML,
    "smollm2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    + CHATML,
    "internlm2-chat": f"<s><|im_start|>system\n{REFERENCE['system_message']}<|im_end|>"
    "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\nA<|im_end|>"
    "<|im_start|>user\nR<|im_end|><|im_start|>assistant\nB<|im_end|>",
    "internlm2": "<s>" + CHATML,
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>",
}
SYSTEM_AS_WRITTEN = {
    "plain": "",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n",
    "smollm2": "<|im_start|>system\nBe brief.<|im_end|>\n",
    "internlm2-chat": "<s><|im_start|>system\nBe brief.<|im_end|>",
    "internlm2": "<s><|im_start|>system\nBe brief.<|im_end|>\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>",
}


def written(made: ChatProcessor, talk: list[dict[str, str]]) -> str:
    return made.tokenizer.decode(made.encode(talk, [], embedder()).ids.tolist(), special=True)


def test_every_template_is_tested_here() -> None:
    assert set(TEMPLATES) == set(AS_WRITTEN) == set(SYSTEM_AS_WRITTEN)


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_as_written(name: str) -> None:
    made = ChatProcessor(ByteTokenizer(MARKERS), name)
    assert written(made, TALK) == AS_WRITTEN[name]
    prompt = made.encode_prompt(TALK[:3], [], embedder()).ids.tolist()
    assert AS_WRITTEN[name].startswith(made.tokenizer.decode(prompt, special=True))
    assert AS_WRITTEN[name].endswith("B" + made.tokenizer.decode([made.end_id], special=True))


@pytest.mark.parametrize("name", SYSTEM_AS_WRITTEN)
def test_system_message(name: str) -> None:
    opening = SYSTEM_AS_WRITTEN[name]
    given = ChatProcessor(ByteTokenizer(MARKERS), name, system="Be brief.")
    turn = [{"from": "system", "value": "Be brief."}, *TALK]
    assert written(given, TALK).startswith(opening)
    assert written(given, TALK) == written(ChatProcessor(ByteTokenizer(MARKERS), name), turn)
    none = written(ChatProcessor(ByteTokenizer(MARKERS), name, system=""), TALK)
    assert "system" not in none and AS_WRITTEN[name].endswith(none.removeprefix("<s>"))


def test_the_released_template_word_by_word() -> None:
    ours = TEMPLATES["internlm2-chat"]
    assert ours.system_start + "{system_message}" == REFERENCE["system_template"]
    assert (ours.system, [ours.user_start, ours.answer_start]) == (REFERENCE["system_message"], REFERENCE["roles"])
    assert {ours.system_end, ours.user_end, ours.answer_end} == {REFERENCE["sep"]} and ours.answer_gap == ""


def test_a_template_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmframe.processing.templates.TEMPLATES", dict(TEMPLATES))
    register_template("quiz", Template(user_start="Q: ", answer_start=" A: "))
    assert written(processor("quiz"), TALK[:2]) == "Q: Q A: A</s>"
    with pytest.raises(UserError, match="two chat templates are called 'quiz'"):
        register_template("quiz", Template())
    with pytest.raises(UserError, match="two chat templates are called 'plain'"):
        register_template("plain", Template())


def test_a_model_s_files_bring_the_plug_in_that_has_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a checkpoint builds its processor before anything else has asked for plug-ins."""
    monkeypatch.setattr("mmframe.processing.templates.TEMPLATES", dict(TEMPLATES))
    monkeypatch.setattr("mmframe.registry.discover", lambda: register_template("late", Template()))
    assert get_template("late") == Template()


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--stage", "s2_instruction"]])
def test_a_recipe_with_an_unknown_template_stops_before_anything_loads(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert template_names() == sorted(TEMPLATES)
    words = ["fit", "--config", "toy/evip_pp", "--run-dir", str(tmp_path), *arguments]
    assert main([*words, "--model.processor.template=chatlm"]) == 2
    error = capsys.readouterr().err
    assert "template 'chatlm' does not exist; did you mean 'chatml'?" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_template_is_one_line_with_the_nearest() -> None:
    with pytest.raises(UserError, match="template 'chatlm' does not exist; did you mean 'chatml'?") as caught:
        processor("chatlm")
    assert "internlm2-chat" in str(caught.value) and "\n" not in str(caught.value)
