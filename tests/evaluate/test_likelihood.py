"""Options of several prompts in one pass: each has the likelihood that it has alone, whatever sees what."""

from __future__ import annotations

import pytest
import torch
from PIL.Image import Image

from mmframe.batch import Batch
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.evaluate.likelihood import option_likelihoods
from mmframe.sampling import SamplingParams
from tests.model.engines import ask, make_engine, make_net, picture

ASKED = [("what is that?", [picture(1)]), ("hi", []), ("<image>\nand <image>\nso?", [picture(2, (16, 8)), picture(3)])]


def alone(engine: Engine, text: str, images: list[Image], answer: str) -> tuple[float, int, bool]:
    """The plain way: question and answer as one row of training."""
    placed = text if "<image>" in text else "<image>\n" * len(images) + text
    turns = [{"from": "human", "value": placed}, {"from": "gpt", "value": answer}]
    batch = Batch.collate([engine.processor.encode(turns, images, engine.net.patch_embedder, 6)])
    with torch.no_grad():
        logits_SV = engine.net(batch).logits[:-1].float()  # the last predicts the end of the answer
    ids_S = batch.labels[batch.supervised][:-1]
    total = float(logits_SV.log_softmax(-1).gather(1, ids_S[:, None]).sum())
    return total, len(ids_S), bool((logits_SV.argmax(-1) == ids_S).all())


@pytest.mark.parametrize("attention", ["causal", "image_bidirectional", "prefix"])
def test_options_are_as_likely_as_alone(attention: str) -> None:
    engine = make_engine(make_net(attention))
    prompts = [ask(engine, text, images) for text, images in ASKED]
    likeliest = engine.generate(prompts, SamplingParams(3))[1].text
    options = [["yes it is", "no"], ["a", likeliest, "cat"], ["perhaps"]]
    found = option_likelihoods(engine, prompts, options)
    assert [len(group) for group in found] == [2, 3, 1]
    for (text, images), texts, group in zip(ASKED, options, found, strict=True):
        for option, one in zip(texts, group, strict=True):
            total, tokens, greedy = alone(engine, text, images, option)
            assert (one.tokens, one.greedy) == (tokens, greedy)
            assert one.total == pytest.approx(total, abs=1e-4)
    assert [one.greedy for one in found[1]] == [False, True, False]


def test_an_option_without_tokens_is_named() -> None:
    engine = make_engine()
    with pytest.raises(UserError, match=r"sample 'hi': option '' has no tokens"):
        option_likelihoods(engine, [ask(engine, "hi")], [["yes", ""]])
