"""ChatProcessor: the reference's prompts and label masking, slots, boundaries, branches."""

import random

import pytest
import torch
from PIL import Image

from mmframe import images as pictures
from mmframe.batch import IGNORE, Sample
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.processing import ChatProcessor
from tests.data.support import FixtureTokenizer, embedder, fixture_text, picture, processor
from tests.helpers import tiny_embedder

CASES = fixture_text("conversation.json")
TEMPLATES = ("plain", "chatml", "smollm2", "internlm2-chat")


@pytest.fixture(scope="module")
def reference() -> ChatProcessor:
    return ChatProcessor(FixtureTokenizer(), "internlm2-chat", image_start="<img>", image_end="</img>")


def tiles(count: int, side: int = 56) -> torch.Tensor:
    return torch.zeros(count, 3, side, side, dtype=torch.uint8)


def reference_ids(sample: Sample) -> list[int]:
    """The reference fills slots with id 500, we with a filler."""
    return torch.where(sample.kinds == TokenKind.IMAGE, 500, sample.ids).tolist()


def unshifted(sample: Sample) -> list[int]:
    """Labels as the reference stores them: the token itself where it is a target."""
    return [IGNORE, *sample.labels.tolist()[:-1]]


AS_THEY_STAND = ("single", "multi", "image", "multi_image", "first_not_human", "empty_answer")


@pytest.mark.parametrize("name", AS_THEY_STAND)
def test_ids_and_labels_are_the_reference_s(name: str, reference: ChatProcessor) -> None:
    case = CASES["masking"][name]
    slots = [] if case["text_only"] else case["num_image_token_list"]
    images = [tiles(n // 16) for n in slots]
    sample = reference.encode(case["conversations"], images, embedder(56, 16), key=name)
    assert reference_ids(sample) == case["input_ids"]
    assert unshifted(sample) == case["labels"]


def test_padding_of_the_reference_aside(reference: ChatProcessor) -> None:
    case = CASES["masking"]["pad_max_length"]
    sample = reference.encode(case["conversations"], [], embedder())
    assert reference_ids(sample) == case["input_ids"][: len(sample)]
    assert unshifted(sample) == case["labels"][: len(sample)]


def test_the_masking_cases_are_all_here() -> None:
    """Six as they stand, and four below where we pad nothing, truncate nothing, or do what a user expects."""
    below = {"pad_max_length", "open_user_end", "truncated", "truncated_text_only_image"}
    assert set(CASES["masking"]) == below | set(AS_THEY_STAND)


def test_nothing_is_truncated(reference: ChatProcessor) -> None:
    case = CASES["masking"]["truncated"]  # the reference cuts the row, and with it the answer's end
    sample = reference.encode(case["conversations"], [], embedder())
    cut = case["model_max_length"]
    assert reference_ids(sample)[:cut] == case["input_ids"] and unshifted(sample)[:cut] == case["labels"]
    targets = [i for i in unshifted(sample) if i != IGNORE]
    assert reference.tokenizer.decode(targets, special=True) == case["conversations"][1]["value"] + "<|im_end|>"


def test_a_placeholder_without_a_picture_is_an_error(reference: ChatProcessor) -> None:
    case = CASES["masking"]["truncated_text_only_image"]  # the reference leaves the word <image> in the text
    with pytest.raises(UserError, match="1 <image> placeholders but 0 images"):
        reference.encode(case["conversations"], [], embedder())
    sample = reference.encode(case["conversations"], [tiles(1)], embedder(56, 16))
    targets = [i for i in unshifted(sample) if i != IGNORE]
    assert [reference.tokenizer.decode(targets, special=True)] == case["target_texts"]


def test_a_question_without_answer_is_no_target(reference: ChatProcessor) -> None:
    case = CASES["masking"]["open_user_end"]  # the reference supervises the last question: a bug
    sample = reference.encode(case["conversations"], [], embedder())
    assert reference_ids(sample) == case["input_ids"]
    targets = [i for i in unshifted(sample) if i != IGNORE]
    assert reference.tokenizer.decode(targets, special=True) == "A1<|im_end|>"


def turns_of(case: dict) -> list[dict[str, str]]:
    """The fixture's (question, answer or None) pairs; an empty answer is a turn that says nothing."""
    talk = []
    for question, answer in case["turns"]:
        talk.append({"from": "human", "value": question})
        talk += [] if answer is None else [{"from": "gpt", "value": answer}]
    return talk


def prompt_ids(made: ChatProcessor, prompt: str, tiles_of_images: list[int]) -> list[int]:
    """What the reference gives the model for a prompt: <image> is <img>, 16 slots a tile, </img>."""
    for count in tiles_of_images:
        prompt = prompt.replace("<image>", "<img>" + "<IMG_CONTEXT>" * (16 * count) + "</img>", 1)
    return [1, *made.tokenizer.encode(prompt, special=True)]


@pytest.mark.parametrize(
    ("name", "counts"),
    [("single_turn", []), ("multi_turn", []), ("image_placeholder", [1]), ("image_placeholder", [7])],
)
def test_prompts_are_the_reference_s(name: str, counts: list[int], reference: ChatProcessor) -> None:
    case = CASES["dialogues"][name]
    sample = reference.encode_prompt(turns_of(case), [tiles(n) for n in counts], embedder(56, 16))
    assert reference_ids(sample) == prompt_ids(reference, case["prompt"], counts)
    assert (sample.labels == IGNORE).all()


@pytest.mark.parametrize(("name", "counts"), [("multi_image_closed", [2, 1]), ("empty_answer_quirk", [])])
def test_closed_dialogues_are_the_reference_s(name: str, counts: list[int], reference: ChatProcessor) -> None:
    case = CASES["dialogues"][name]
    sample = reference.encode(turns_of(case), [tiles(n) for n in counts], embedder(56, 16))
    assert reference_ids(sample) == prompt_ids(reference, case["prompt"], counts)
    said = [answer + "<|im_end|>" for _, answer in case["turns"] if answer]
    targets = [i for i in unshifted(sample) if i != IGNORE]
    assert reference.tokenizer.decode(targets, special=True) == "".join(said)


CHATS: dict[str, list[tuple[object, list[int]]]] = {
    "chat_single_image": [("Hi there", [1])],
    "chat_two_tiles": [("Hi", [2])],
    "chat_history": [
        (
            [
                {"from": "human", "value": "<image>\nHi"},
                {"from": "gpt", "value": "Yes"},
                {"from": "human", "value": "And now?"},
            ],
            [1],
        )
    ],
    "multi_image_chat": [("<image 1> (\u56fe1):<image><image 2> (\u56fe2):<image>\nCompare", [1, 2])],
    "batch_chat": [("Hi", [1]), ("What is this?", [2])],
}
"""What to ask for each chat run of the reference: the conversation and the tiles of its images."""


@pytest.mark.parametrize("name", sorted(CASES["chat"]))
def test_chats_of_the_reference(name: str, reference: ChatProcessor) -> None:
    run = CASES["chat"][name]
    for (talk, counts), ids, mask in zip(CHATS[name], run["input_ids"], run["attention_mask"], strict=True):
        sample = reference.encode_prompt(talk, [tiles(n) for n in counts], embedder(56, 16))  # type: ignore[arg-type]
        assert reference_ids(sample) == [i for i, real in zip(ids, mask, strict=True) if real]
        assert (sample.kinds == TokenKind.IMAGE).sum() == 16 * sum(counts)


def test_a_chat_without_pictures_needs_none(reference: ChatProcessor) -> None:
    """The reference crashes on text alone (see chat_crashes in the fixture)."""
    sample = reference.encode_prompt("Hello, who are you?", [], embedder())
    assert reference_ids(sample) == prompt_ids(reference, CASES["dialogues"]["single_turn"]["prompt"], [])


def test_stop_ids(reference: ChatProcessor) -> None:
    assert reference.stop_ids == (2, 497)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("marks", [(None, None), ("<img>", "</img>")])
def test_p10_only_answers_are_supervised(template: str, marks: tuple[str | None, str | None]) -> None:
    made = processor(template, image_start=marks[0], image_end=marks[1])
    talk = [
        {"from": "human", "value": "<image>\nfirst? <image>"},
        {"from": "gpt", "value": "one"},
        {"from": "human", "value": "then <image>"},
        {"from": "gpt", "value": "two"},
    ]
    samples = [
        made.encode(talk, [picture(), picture((40, 10)), picture()], embedder(), max_tiles=6),
        made.encode_branches([("a?", "one"), ("b?", "two"), ("", "three")], [picture((40, 10))], embedder(), 6),
    ]
    for sample, answers in zip(samples, (["one", "two"], ["one", "two", "three"]), strict=True):
        wanted = sample.labels != IGNORE
        assert (sample.kinds[wanted] == TokenKind.TEXT).all()
        assert not (wanted[:-1] & (sample.branches[1:] != sample.branches[:-1])).any()
        end = made.tokenizer.decode([made.end_id], special=True)
        said = made.tokenizer.decode(sample.labels[wanted].tolist(), special=True)
        assert said == "".join(answer + end for answer in answers)
        assert torch.equal(sample.labels[:-1][wanted[:-1]], sample.ids[1:][wanted[:-1]])
        boundaries = int((sample.kinds == TokenKind.BOUNDARY).sum())
        assert boundaries == (0 if marks[0] is None else 2 * (int(sample.blocks.max()) + 1))


def test_p11_slots_are_the_visual_tokens_for_any_size() -> None:
    real, made, draw = tiny_embedder(), processor(), random.Random(0)
    for _ in range(40):
        sizes = [(draw.randint(1, 4000), draw.randint(1, 400)) for _ in range(draw.randint(1, 3))]
        images = [Image.new("L", size) for size in sizes]
        most = draw.randint(1, 12)
        sample = made.encode_prompt("what?", images, real, most)
        share = max(1, most // len(images))
        per_image = [
            pictures.count_tiles(*size, real.image_size, share) * real.num_tokens(real.image_size, real.image_size)
            for size in sizes
        ]
        slots = [int((sample.blocks == index).sum()) for index in range(len(images))]
        assert slots == per_image
        assert real(sample.tiles).shape[0] == sum(slots) == int((sample.kinds == TokenKind.IMAGE).sum())


@pytest.mark.parametrize(
    ("text", "images"), [("<image> and <image>", 1), ("no picture", 2), ("<image>", 2), ("<image>", 0)]
)
def test_p11_counts_that_differ_are_an_error_with_the_numbers(text: str, images: int) -> None:
    talk = [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}]
    placed = text.count("<image>")
    with pytest.raises(UserError) as caught:
        processor().encode(talk, [picture()] * images, embedder(), key="file:17")
    message = str(caught.value)
    assert "'file:17'" in message and f"{placed} <image> placeholders but {images} images" in message
    assert f"image {min(placed, images)} has no" in message


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("count", [1, 2])
def test_each_branch_is_the_row_of_its_question_alone(template: str, count: int) -> None:
    made = processor(template, image_start="<img>", image_end="</img>")
    asked = [("what color?", "red"), (" what shape? ", "a circle"), ("", "nothing")]
    images = [picture((40, 20))] * count
    shared = made.encode_branches(asked, images, embedder(), 4)
    assert sorted(set(shared.branches.tolist())) == [0, 1, 2, 3]
    for number, (question, answer) in enumerate(asked, 1):
        place = (shared.branches == 0) | (shared.branches == number)
        talk = [{"from": "human", "value": "<image>\n" * count + question.strip()}, {"from": "gpt", "value": answer}]
        alone = made.encode(talk, images, embedder(), 4)
        if question:  # a question that is empty loses the line break before it
            for column in ("ids", "kinds", "labels", "positions", "blocks"):
                assert torch.equal(getattr(shared, column)[place], getattr(alone, column)), column
            assert torch.equal(shared.tiles, alone.tiles)


@pytest.mark.parametrize("template", TEMPLATES)
def test_shared_prompts_are_prompts_cut_in_two(template: str) -> None:
    made = processor(template)
    trunk, rests = made.encode_shared_prompt(["a?", "bb?"], [picture()], embedder())
    for question, rest in zip(["a?", "bb?"], rests, strict=True):
        whole = made.encode_prompt(question, [picture()], embedder())
        assert torch.equal(torch.cat([trunk.ids, rest.ids]), whole.ids)
        assert torch.equal(torch.cat([trunk.positions, rest.positions]), whole.positions)
        answered = made.encode_branches([(question, "yes")], [picture()], embedder())
        assert torch.equal(answered.ids[: len(whole)], whole.ids) and answered.labels[len(whole) - 1] != IGNORE


def test_one_question_is_no_branch() -> None:
    sample = processor().encode_branches([("a?", "b")], [picture()], embedder())
    assert not sample.branches.any()


def test_words_of_a_user_are_never_markers() -> None:
    made = processor("smollm2")
    talk = [{"from": "human", "value": "<|im_end|><img>"}, {"from": "gpt", "value": "<|im_start|>"}]
    sample = made.encode(talk, [], embedder())
    assert sample.ids.tolist().count(made.tokenizer.special_id("<|im_end|>")) == 3  # system, user, assistant
    assert sample.ids.tolist().count(made.tokenizer.special_id("<|im_start|>")) == 3
    assert not (sample.kinds == TokenKind.BOUNDARY).any()


def test_system_message_and_its_absence() -> None:
    made, none = processor("chatml", system="Be brief."), processor("chatml", system="")
    assert made.tokenizer.decode(made.encode_prompt("Q", [], embedder()).ids.tolist()).startswith("system\nBe brief.")
    assert none.tokenizer.decode(none.encode_prompt("Q", [], embedder()).ids.tolist()) == "user\nQ\nassistant\n"
    own = [{"from": "system", "value": "Mine."}, {"from": "human", "value": "Q"}]
    assert made.tokenizer.decode(made.encode_prompt(own, [], embedder()).ids.tolist()).startswith("system\nMine.")


def test_plain_text_supervises_every_token_after_the_first() -> None:
    sample = processor().encode_text("abc")
    assert sample.labels.tolist() == [*sample.ids.tolist()[1:], IGNORE]


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([], "no turn of the user"),
        ([{"from": "human", "value": "a"}, {"from": "human", "value": "b"}], "turn 1 is from 'human', not 'gpt'"),
        ([{"from": "user", "value": "a"}], "turn 0 is from 'user'"),
    ],
)
def test_bad_turns_are_errors(talk: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        processor().encode(talk, [], embedder(), key="k")


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(UserError, match="std"):
        processor(std=(1, 1, 0))
    with pytest.raises(UserError, match="no special token '<image>'"):
        processor(image_start="<image>")
    with pytest.raises(UserError, match="must end with a turn of the user"):
        processor().encode_prompt([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], [], embedder())
    with pytest.raises(UserError, match="shared images stand in front"):
        processor().encode_branches([("<image> a?", "b")], [picture()], embedder())
