"""What an LLM judge is asked. Our own words: scores under them are not those of a paper that used others.

A task names one in its `judge` entry, or gives a text of its own with the same places: ``{question}``, ``{answer}``
(what the model said) and, where a grade is asked for, ``{reference}``. The digest of the text stands in the record.
"""

from __future__ import annotations

import hashlib

from mmframe.errors import UserError, suggest

EXTRACT = """\
Below are a question about a picture and a response to it. Write down the final answer that the response gives.
Do not solve the question, and do not correct the response.
- For a question with choices: the letter of the choice.
- For a question about a number: the number in digits, without a unit.
- For a question about a list: its numbers in square brackets.
- If the response gives no final answer, or leaves open which it is: NONE.
Write nothing else.

Question: How many wheels do the cars have together? Answer with an integer.
Response: There are two cars, each of which has four wheels, so together they have eight wheels.
Final answer: 8

Question: Which colour covers the smallest part? Choices: (A) red (B) green (C) blue
Response: Red covers half, green a third; what is left is blue, and that is the least.
Final answer: C

Question: In which two months was the rainfall equal? Answer with a list of numbers, January is 1.
Response: The bars of March and of August have the same height.
Final answer: [3, 8]

Question: What is the height of the tower in metres? Answer with one decimal.
Response: The picture shows no scale, so that I cannot tell.
Final answer: NONE

Question: {question}
Response: {answer}
Final answer:"""

GRADE = """\
Grade the answer to a question about a picture. You do not see the picture: the reference says what is right.
In a reference, <AND> stands between things that all have to be said, each of which counts the same, and <OR> between
alternatives, one of which is enough. Other words for the same thing are right; what the reference does not ask for
counts neither way unless it contradicts it.
Write a number from 0.0 (all wrong) over 0.1, 0.2 and so on to 1.0 (all right), and nothing else.

Question: Which sizes of the shirt are left?
Reference: S <AND> XL
Answer: Only size S is left.
Grade: 0.5

Question: Which sizes of the shirt are left?
Reference: S <AND> XL
Answer: You can still get it in S and in XL.
Grade: 1.0

Question: What does the sign forbid?
Reference: cycling <OR> riding a bike
Answer: It says that dogs have to be on a leash.
Grade: 0.0

Question: Why does the man laugh?
Reference: His dog took the ball and brought him a shoe instead, which he did not expect.
Answer: He laughs because the dog plays with the ball.
Grade: 0.3

Question: {question}
Reference: {reference}
Answer: {answer}
Grade:"""

TEMPLATES = {"extract": EXTRACT, "grade": GRADE}


def template(given: str, what: str) -> str:
    """The text of a template.

    Args:
        given: A name of `TEMPLATES`, or a text with the place ``{answer}``.
        what: Who asks, for the message.

    Raises:
        UserError: It is neither.
    """
    if "{answer}" in given:
        return given
    if given not in TEMPLATES:
        raise UserError(
            f"{what}: {given!r} is neither a judge's template nor a text with {{answer}} in it; "
            f"{suggest(given, TEMPLATES)}"
        )
    return TEMPLATES[given]


def filled(text: str, **values: str) -> str:
    """The template with its places filled at once, so that nothing is filled into what was filled in."""
    parts = text.split("{")
    made = [parts[0]]
    for part in parts[1:]:
        name, closing, rest = part.partition("}")
        made.append(values[name] + rest if closing and name in values else "{" + part)
    return "".join(made)


def digest(text: str) -> str:
    """Equal digests, equal templates."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
