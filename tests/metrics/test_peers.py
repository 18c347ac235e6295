"""Each metric beside another implementation, on generated cases; where they differ, the reason is part of the test."""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import re
import string
from collections import defaultdict
from typing import Any, Optional

import pytest

from mmframe.metrics.anls import ANLS
from mmframe.metrics.bleu import BLEU4
from mmframe.metrics.character_errors import CharacterErrorRate
from mmframe.metrics.choice import CircularAccuracy
from mmframe.metrics.cider import CIDEr
from mmframe.metrics.edit_distance import edit_distance
from mmframe.metrics.exact_match import GQAAccuracy
from mmframe.metrics.hallusion import HallusionBenchScore
from mmframe.metrics.mme import COGNITION, PERCEPTION, MMEScore
from mmframe.metrics.ocrbench import CATEGORIES, FORMULAS, OCRBenchScore
from mmframe.metrics.option_letters import option_letter
from mmframe.metrics.pope import POPEScore
from mmframe.metrics.relaxed import RelaxedAccuracy
from mmframe.metrics.rouge import ROUGEL
from mmframe.metrics.vqa import VQAAccuracy
from mmframe.metrics.vqa_answers import textvqa
from mmframe.metrics.yes_no import prefix, word
from tests.metrics.peers import CASES, caption, near, peer, phrase


@pytest.fixture
def draw() -> random.Random:
    return random.Random(0)


def score(metric: Any, said: Any, **right: Any) -> float:
    return metric.score(said, right)["score"]


# ---- accepted texts


def ten_answers(draw: random.Random) -> tuple[str, list[str]]:
    pool = [phrase(draw) for _ in range(draw.randrange(1, 5))]
    return near(draw, draw.choice(pool)), [draw.choice(pool) for _ in range(10)]


def test_vqa_normaliser_and_accuracy_beside_lmms_eval(draw: random.Random) -> None:
    (processor,) = peer("lmms_eval", "tasks/_task_utils/vqa_eval_metric.py", "EvalAIAnswerProcessor", re=re)
    theirs = processor()

    def without_call(text: str) -> str:  # lmms-eval's vqav2 task leaves out the first of the three steps
        text = text.replace("\n", " ").replace("\t", " ").strip()
        return theirs.process_digit_article(theirs.process_punctuation(text))

    def soft(answers: list[str], said: str) -> float:
        return sum(min(1, sum(a == said for a in answers[:n] + answers[n + 1 :]) / 3) for n in range(10)) / 10

    text_vqa, vqa = VQAAccuracy("textvqa"), VQAAccuracy("vqa_v2")
    unanimous = 0
    for _ in range(CASES):
        said, answers = ten_answers(draw)
        assert textvqa(said) == theirs(said)
        expected = soft([theirs(answer) for answer in answers], theirs(said))
        assert score(text_vqa, said, answers=answers) == pytest.approx(expected, abs=1e-12)
        if len({answer.strip() for answer in answers}) == 1:
            unanimous += 1  # the official code then compares without normalising, lmms-eval normalises always
            continue
        expected = soft([without_call(answer) for answer in answers], without_call(said))
        assert score(vqa, said, answers=answers) == pytest.approx(expected, abs=1e-12)
    assert CASES - unanimous > 1_000


def test_vqa_normaliser_beside_vlmevalkit(draw: random.Random) -> None:
    (marks,) = peer("vlmeval", "smp/misc.py", "process_punctuation")
    (rest,) = peer("vlmeval", "dataset/utils/vqa_eval.py", "_process_digit_article")
    same = 0
    for _ in range(CASES):
        text = phrase(draw).lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        if re.search(r"\d\.(?!\d)", text):
            continue  # it keeps the period of "3.": its lookbehind is spelt right, the official one is not
        assert rest(marks(text.replace("\n", " ").strip())) == textvqa(text)
        same += 1
    assert same > 1_000


def test_anls_beside_anls_vlmevalkit_and_lmms_eval(draw: random.Random) -> None:
    (distance,) = peer("anls", "metrics/dist.py", "levenshtein_distance")
    (relative,) = peer("anls", "metrics/dist.py", "normalized_levenshtein_distance", levenshtein_distance=distance)
    package, _ = peer("anls", "metrics/score.py", "anls_score", "similatiry_function", NL=relative, List=list)
    (vlm,) = peer("vlmeval", "dataset/utils/vqa_eval.py", "anls_compute", levenshtein_distance=distance)
    (lmms,) = peer("lmms_eval", "api/metrics.py", "anls", levenshtein_distance=distance)
    metric = ANLS()
    compared = 0
    for _ in range(CASES):
        right = [phrase(draw) for _ in range(draw.randrange(1, 4))]
        said = near(draw, draw.choice(right))
        ours = score(metric, said, answers=right)
        best = 1 - min(vlm(answer, said) for answer in right)  # a distance, not a similarity
        assert ours == pytest.approx(best if best >= 0.5 else 0, abs=1e-12)
        assert ours == pytest.approx(lmms(right, [said])["anls"], abs=1e-12)
        spaced = any(text != " ".join(text.split()) for text in [said, *right])
        if best != 0.5 and not spaced and "ß" not in "".join([said, *right]).lower():
            # `anls` takes lengths after spaces and case are evened out, and gives 0 at the threshold (the formula)
            assert ours == pytest.approx(package(said, right, 0.5), abs=1e-12)
            compared += 1
    assert compared > 1_000


def test_relaxed_accuracy_beside_lmms_eval_and_vlmevalkit(draw: random.Random) -> None:
    (lmms,) = peer("lmms_eval", "tasks/chartqa/utils.py", "relaxed_correctness")
    (vlm,) = peer("vlmeval", "dataset/utils/vqa_eval.py", "relaxed_correctness", Optional=Optional)
    numbers = [
        "0",
        "0.0",
        "10",
        "10.5",
        "9.5",
        "-10",
        "5%",
        "0.05",
        "5.2%",
        "1,000",
        "1000",
        "2010",
        "2019",
        "nan",
        "inf",
    ]
    numbers += ["%", "1e3", "$5", "5 %", "٣", "Yes", "no"]
    metric = RelaxedAccuracy()
    for _ in range(CASES):
        target = draw.choice([*numbers, f"{draw.uniform(-5, 5):.2f}", phrase(draw)])
        said = draw.choice([draw.choice(numbers), near(draw, target)])
        if target.replace("-", "").replace(".", "").isdigit() and draw.random() < 0.7:
            said = str(float(target) * draw.choice([0.949, 0.951, 1.0, 1.049, 1.051]))
        ours = bool(score(metric, said, answers=target))
        assert ours == vlm(target, said.strip())
        assert ours == lmms(said.strip(), target)  # lmms-eval leaves the space around an answer: " Yes" is wrong there


def test_gqa_beside_internvl_rule(draw: random.Random) -> None:
    metric = GQAAccuracy()
    for _ in range(CASES):
        right = phrase(draw)
        said = near(draw, right)
        expected = said.replace(".", "").strip().lower() == right.replace(".", "").strip().lower()
        assert score(metric, said, answers=right) == expected


def test_ocrbench_beside_lmms_eval(draw: random.Random) -> None:
    fold, process = peer("lmms_eval", "tasks/ocrbench/utils.py", "_fold_fullwidth_ascii", "ocrbench_process_results")
    metric = OCRBenchScore()
    for _ in range(CASES):
        category = draw.choice([CATEGORIES[0], FORMULAS])
        right = [phrase(draw) or "x" for _ in range(draw.randrange(1, 3))]
        right = [text if text.strip() else "x" for text in right]
        said = f"{phrase(draw)} {near(draw, draw.choice(right))} {phrase(draw)}"
        document = {
            "answer": right,
            "question_type": category,
            "dataset": "HME100k" if category == FORMULAS else "IIIT5K",
        }
        expected = process(document, [said])["ocrbench_accuracy"]["score"]
        assert score(metric, said, answers=right, category=category) == expected
    # its newer version reads full-width letters as plain ones, which the official code does not
    assert fold("ＡＢ") == "AB" and score(metric, "ＡＢ", answers="ab", category=CATEGORIES[0]) == 0


def test_character_errors_beside_jiwer_and_torchmetrics(draw: random.Random) -> None:
    from torchmetrics.text import CharErrorRate

    rights = [" ".join(phrase(draw, 6).split()) or "x" for _ in range(CASES)]
    said = [" ".join(near(draw, right).split()) for right in rights]
    ours = CharacterErrorRate("as_given")
    ours.update(said, [{"text": right} for right in rights])
    found = ours.compute()["cer"]
    theirs = CharErrorRate()
    theirs.update(said, rights)
    assert found == pytest.approx(100 * float(theirs.compute()), rel=1e-6)
    jiwer = pytest.importorskip("jiwer")
    assert found == pytest.approx(100 * jiwer.cer(rights, said), rel=1e-9)
    from rapidfuzz.distance import Levenshtein

    for one, other in zip(said, rights, strict=True):
        assert edit_distance(one, other) == Levenshtein.distance(one, other)


# ---- options

OPENINGS = (
    "{L}", "({L})", "{L}.", "{L}. {t}", "({L}) {t}", "The answer is {L}.", "The answer is ({L}) {t}.", "answer: {L}",
    "{t}", "It is {t}.", "A {t} is on the left", "I think it is {L}", "{l}", "**{L}**", "{L} and {M}", "{L}: {t}",
    "Option {L} is wrong, so {M}", "{L}) {t}: the picture has a {t} on a table near the house", "A picture of {t}", "",
    "nothing at all", "{L}\n{t}", "[{L}]", "{t} {u}", "Sorry, I can't help with images of people yet.", "{L}/{M}",
    "None of these, {L} perhaps", "Not {L}", "{L}, since the dog is red",
)  # fmt: skip


def choices(draw: random.Random) -> tuple[str, dict[str, str], str]:
    """An answer, options, and the form of the answer."""
    words = "cat dog red bus two blue car tree house the".split()
    letters = string.ascii_uppercase[: draw.choice([2, 3, 4, 4, 5])]
    options = {letter: " ".join(draw.sample(words, draw.choice([1, 1, 2]))) for letter in letters}
    letter, other = draw.sample(letters, 2)
    form = draw.choice(OPENINGS)
    return form.format(L=letter, M=other, l=letter.lower(), t=options[letter], u=options[other]), options, form


def test_letters_beside_vlmevalkit(draw: random.Random) -> None:
    (infer, *_) = peer(
        "vlmeval", "utils/matching_util.py", "can_infer", "can_infer_option", "can_infer_text",
        cp=copy, os=os, string=string, logger=logging,
    )  # fmt: skip
    same = 0
    for _ in range(CASES):
        said, options, form = choices(draw)
        theirs = infer(said, dict(options))  # which lowers the texts of the options it is given, in place
        ours, theirs = option_letter(said, options), None if theirs in (False, "Z") else theirs
        if ours == theirs:
            same += 1
            continue
        small_letter = form == "{l}"
        far_from_the_end = said[:1] == ours and len(said.split()) > 4  # it looks at the last four words
        article = re.search(r"\bA [a-z]", said) and theirs == "A"  # "A" as an article, unless VERBOSE is set there
        whole_text = ours is not None and said == options[ours]  # of two options that it holds, the one that it is
        assert small_letter or far_from_the_end or article or whole_text, (said, options, ours, theirs)
    assert same > 1_500


def test_circular_accuracy_beside_the_definition(draw: random.Random) -> None:
    metric, right = CircularAccuracy(), {}
    for group in range(CASES):
        options = ["cat", "dog", "bus", "car"][: draw.choice([2, 3, 4])]
        for turn in range(len(options)):
            answer = string.ascii_uppercase[turn]
            said = answer if draw.random() < 0.8 else draw.choice("ABCD?")
            metric.update([said], [{"answer": answer, "options": options, "group": group}])
            right.setdefault(group, []).append(said == answer)
    assert metric.compute()["accuracy"] == pytest.approx(100 * sum(map(all, right.values())) / CASES)


# ---- yes or no

ANSWERS = (
    "Yes",
    "no",
    "Yes.",
    "No, there is not.",
    "yes and no",
    "not sure",
    "I know",
    "",
    "y",
    "The answer is yes",
    "No\n",
)


def test_reading_yes_or_no_beside_vlmevalkit_and_lmms_eval(draw: random.Random) -> None:
    (marks,) = peer("vlmeval", "smp/misc.py", "process_punctuation")
    (extract,) = peer("vlmeval", "dataset/utils/yorn.py", "YOrN_Extraction", process_punctuation=marks)
    (parse,) = peer("lmms_eval", "tasks/mme/utils.py", "parse_pred_ans")
    for _ in range(CASES):
        said = draw.choice(ANSWERS) if draw.random() < 0.5 else near(draw, draw.choice(ANSWERS)) + " " + phrase(draw, 2)
        theirs = extract(said)
        expected = None if theirs == "Unknown" else theirs.lower()
        glued = set(marks(said.lower()).split()) != set(re.findall(r"[^\W_]+", said.lower()))
        assert word(said) == expected or glued, said  # "no,yes - " loses its comma there and is one word
        if "." not in said[:6] and said.strip().lower() not in ("y", "n"):  # lmms-eval drops periods, and reads y and n
            assert prefix(said) == (None if parse(said) == "other" else parse(said)), said


def test_mme_beside_lmms_eval(draw: random.Random) -> None:
    (parse, process, total, _) = peer(
        "lmms_eval", "tasks/mme/utils.py",
        "parse_pred_ans", "mme_process_results", "mme_aggregate_results", "eval_type_dict",
        defaultdict=defaultdict, eval_logger=logging.getLogger("peer"),
    )  # fmt: skip
    assert parse
    metric, kept = MMEScore(), {"mme_perception_score": [], "mme_cognition_score": []}
    for image in range(CASES // 2):
        category = draw.choice(PERCEPTION + COGNITION)
        for right in ("Yes", "No"):
            said = draw.choice([right, right, "yes", "no", "other"])
            metric.update([said], [{"answer": right, "category": category, "image": image}])
            found = process({"answer": right, "category": category, "question_id": image}, [said])
            for key, value in found.items():
                kept[key].append(value)
    figures = metric.compute()
    assert figures["perception"] == pytest.approx(total(kept["mme_perception_score"]))
    assert figures["cognition"] == pytest.approx(total(kept["mme_cognition_score"]))


def test_pope_beside_lmms_eval(draw: random.Random) -> None:
    names = ["accuracy", "precision", "recall", "f1_score", "yes_ratio"]
    process, *totals = peer(
        "lmms_eval", "tasks/pope/utils.py", "pope_process_results", *(f"pope_aggregate_{name}" for name in names)
    )
    metric, kept, said_yes = POPEScore(), [], 0
    for _ in range(CASES):
        right, said = draw.choice(["yes", "no"]), draw.choice(["yes", "No", "yes "])
        metric.update([said], [{"answer": right}])
        kept.append(process({"answer": right, "question_id": 0}, [said])["pope_accuracy"])
        said_yes += said.strip() == "yes"
    figures = metric.compute()
    theirs = {name: 100 * total(kept) for name, total in zip(names, totals, strict=True)}
    for ours, name in (("accuracy", "accuracy"), ("precision", "precision"), ("recall", "recall"), ("f1", "f1_score")):
        assert figures[ours] == pytest.approx(theirs[name])
    # its yes_ratio is that of the references; the official one, and ours, of the answers
    assert figures["yes"] == pytest.approx(100 * said_yes / CASES) != theirs["yes_ratio"]


def test_hallusion_bench_beside_lmms_eval(draw: random.Random) -> None:
    numpy = pytest.importorskip("numpy")
    (rule,) = peer("lmms_eval", "tasks/hallusion_bench/evaluate_hb.py", "hb_aggregation_result_intern")
    names = ("assign_correctness", "get_eval_fig", "get_eval_pair_all", "get_eval_all")
    correct, figure, pair, every = peer("lmms_eval", "tasks/hallusion_bench/utils.py", *names, np=numpy)
    metric, kept = HallusionBenchScore(), []
    for number in range(CASES):
        ids = {"set_id": number // 8, "figure_id": number // 4 % 2, "question_id": number % 4}
        document = {"category": draw.choice(["VD", "VS"]), "subcategory": "ocr", "gt_answer": draw.choice("01")} | ids
        said = draw.choice(["Yes", "no"]) if draw.random() < 0.4 else "Yes" if document["gt_answer"] == "1" else "No"
        metric.update([said], [document | {"answer": document["gt_answer"]}])
        right = (said == "Yes") == (document["gt_answer"] == "1")
        kept.append(document | {"model_prediction": said, "judged": int(right), "visual_input": 1})
    ours = metric.compute()
    correct(kept, "judged")
    totals = {"aAcc": every(kept, "judged"), "fAcc": figure(kept), "qAcc": pair(kept, "judged")}
    for key, found in totals.items():  # the official sums
        assert ours[key] == pytest.approx(100 * found["correct"] / found["total"]), key
    assert ours["aAcc"] == pytest.approx(100 * rule(kept, "aAcc"))
    assert ours["qAcc"] == pytest.approx(100 * rule(kept, "qAcc"))
    assert ours["fAcc"] != pytest.approx(100 * rule(kept, "fAcc"))  # it takes VS without a picture for a figure


# ---- captions


def captions(draw: random.Random, count: int) -> list[tuple[str, list[str]]]:
    made = []
    for _ in range(count):
        human = [caption(draw) for _ in range(draw.randrange(1, 6))]
        made.append((draw.choice([draw.choice(human), caption(draw)]) if draw.random() < 0.97 else "", human))
    return made


def test_caption_metrics_beside_pycocoevalcap(draw: random.Random) -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider_scorer import CiderScorer
    from pycocoevalcap.rouge.rouge import Rouge

    compared = 0
    for count in (1, 2, 3, 10, 100, 1_000):
        made = captions(draw, count)
        cider, bleu = CiderScorer(), BleuScorer()
        for said, human in made:
            cider += (said, human)
            bleu += (said, human)
        metrics = CIDEr(True), BLEU4(True), ROUGEL(True)
        for metric in metrics:
            metric.update([said for said, _ in made], [{"captions": human} for _, human in made])
        ours = {key: value for metric in metrics for key, value in metric.compute().items()}
        assert ours["cider"] == pytest.approx(100 * cider.compute_score()[0], rel=1e-9, abs=1e-9)
        sums, _ = bleu.compute_score(option="closest")
        for n, value in enumerate(sums):
            assert ours[f"bleu{n + 1}"] == pytest.approx(100 * value, rel=1e-9)
        rouge = [Rouge().calc_score([said], human) for said, human in made]
        assert ours["rouge_l"] == pytest.approx(100 * math.fsum(rouge) / count, rel=1e-9)
        compared += count
    assert compared > 1_000
