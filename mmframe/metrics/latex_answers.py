"""Final answers of maths solutions in LaTeX: where they stand, and when two are the same."""

from __future__ import annotations

import re
from fractions import Fraction

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_STATED = re.compile(r".*\b(?:final\s+answer(?:\s+is)?|answer\s+is|answer\s*:)\s*:?\s*([^\n]+)", re.I | re.S)
_NUMBER = re.compile(r"-?(?:\d+/\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PLAIN = re.compile(r"(-?)(?:\\frac\{(-?\d{1,40})\}\{(-?\d{1,40})\}|(\d{1,40}(?:\.\d{1,40})?))")


def final_answer(solution: str) -> str | None:
    """The final answer of a solution, or None where there is none.

    In this order: what the last ``\\boxed{...}`` (or ``\\fbox``) holds, None if it was cut off; what stands behind the
    last "answer is" or "answer:" in its line, without dollars and the period; a text of one line with at most one word,
    which is the answer itself; the last number.
    """
    if boxes := list(_BOX.finditer(solution)):
        return _boxed(solution[boxes[-1].end() :]) or None
    if (stated := _STATED.match(solution)) and (found := _without_sentence(stated[1])):
        return found
    whole = solution.strip()
    if whole and "\n" not in whole and len(_WORD.findall(whole)) <= 1:
        return _without_sentence(whole) or None
    numbers = _NUMBER.findall(solution)
    return numbers[-1] if numbers else None


def same_answer(one: str, other: str) -> bool:
    """Whether two final answers are the same: equal after `normalise_latex`, or plain numbers of one value."""
    first, second = normalise_latex(one), normalise_latex(other)
    if first == second:
        return True
    values = _exact(first), _exact(second)
    return None not in values and values[0] == values[1]


def normalise_latex(text: str) -> str:
    """An answer without what MATH's own comparison (is_equiv, Hendrycks et al. 2021) takes for matters of form.

    Line ends, spaces, ``\\left`` and ``\\right``, degrees, dollars, percent signs, units in a ``\\text`` that begins
    with a space, and "x =" in front do not count; ``tfrac`` and ``dfrac`` are ``frac``; braces that LaTeX lets one
    leave out (``\\frac12``, ``\\sqrt3``) are put in; .5 is 0.5; a/b of two integers is a fraction, 0.5 one half.
    """
    for what, become in (("\n", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("{,}", ",")):
        text = text.replace(what, become)
    text = text.split("\\text{ ")[0]
    for what in ("\\!", "\\,", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "$", "\\%", "%"):
        text = text.replace(what, "")
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = text.replace(" ", "")
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    text = "1/2" if text == "0.5" else text
    return re.sub(r"^(0|-?[1-9]\d*)/(0|-?[1-9]\d*)$", r"\\frac{\1}{\2}", text)


def _boxed(rest: str) -> str:
    """What a box holds, given the text behind its command; "" if it does not end."""
    if not rest.startswith("{"):
        return re.split(r"[$\s]", rest, maxsplit=1)[0]  # \boxed 5
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip()
    return ""


def _without_sentence(text: str) -> str:
    plain = text.strip().strip("*").strip()
    if (maths := re.match(r"\$([^$]+)\$|\\\((.+?)\\\)", plain)) is not None:
        return (maths[1] or maths[2]).strip()
    return re.split(r"\.\s", plain, maxsplit=1)[0].rstrip(".").strip()


def _exact(text: str) -> Fraction | None:
    """The value of a plain number or fraction; commas may part thousands."""
    found = _PLAIN.fullmatch(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text))
    if not found or (found[3] and not int(found[3])):
        return None
    value = Fraction(int(found[2]), int(found[3])) if found[2] else Fraction(found[4])
    return -value if found[1] else value
