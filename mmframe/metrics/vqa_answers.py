"""How the VQA challenges normalise an answer before they compare it.

`vqa_v2` is what GT-Vision-Lab/VQA (vqaEvaluation/vqaEval.py, a013f00) does, `textvqa` what the TextVQA challenge's
evaluator (EvalAIAnswerProcessor of facebookresearch/mmf) does: the same with some characters dropped first. Their
peculiarities are kept, because the published numbers have them: see the comments.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # the official lookbehind is misspelt and never hinders: "3." loses its period, too
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"

_WITH_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _contractions() -> dict[str, str]:
    """Each word with one of its apostrophes forgotten -> the word. Words that lack several are not repaired."""
    found = {"somebody'd": "somebodyd"}  # the wrong way round in the official table
    for word in _WITH_APOSTROPHES:
        for place, character in enumerate(word):
            if character == "'":
                found[word[:place] + word[place + 1 :]] = word
    return found


CONTRACTIONS = _contractions()


def vqa_v2(text: str) -> str:
    """An answer as the VQA v2 evaluation compares it: lower case, digits for small numbers, no articles, few marks."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _words(_without_punctuation(text))


def textvqa(text: str) -> str:
    """An answer as the TextVQA evaluation compares it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_v2(text)


def _without_punctuation(text: str) -> str:
    found = text
    for mark in _PUNCTUATION:
        # both conditions look at the whole answer as given: one comma between digits glues all marks of the answer
        glue = mark + " " in text or " " + mark in text or _COMMA_IN_NUMBER.search(text) is not None
        found = found.replace(mark, "" if glue else " ")
    return _PERIOD.sub("", found, count=int(re.UNICODE))  # the official call gives the flag as the count: 32 periods


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
