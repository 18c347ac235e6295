"""lmms-eval's generation_kwargs become SamplingParams; what cannot be honoured is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.sampling import SamplingParams

READ = ("max_new_tokens", "until", "stop_sequences", "do_sample", "temperature", "top_p", "top_k",
        "repetition_penalty", "seed")  # fmt: skip
ONLY = {"num_beams": 1, "num_return_sequences": 1}
"""Known to transformers; the one value that is what we do."""
OF_OTHERS = ("image_aspect_ratio", "max_agentic_steps")
"""Not about generation: how LLaVA pads pictures, and what lmms-eval reads itself."""
BLANK_LINE = "\n\n"


def sampling_params(
    given: Mapping[str, Any], where: str, max_new_tokens: int, stop_at_blank_line: bool = False, draw: int = 0
) -> SamplingParams:
    """How a request is answered. Drawn is where the task does not say do_sample=false and its temperature is above 0.

    Args:
        given: generation_kwargs of the task, those of --gen_kwargs among them; None is as if it were not there.
        where: The task, for errors.
        max_new_tokens: Where the task says nothing.
        stop_at_blank_line: Whether a blank line alone in `until` ends an answer. lmms-eval writes it into every task
            that has no `until`; it was meant for base models, and its own models leave it out.
        draw: Added to the seed, so that repeated requests draw different answers.

    Raises:
        UserError: something that cannot be honoured, or a value out of its range.
    """
    kwargs = {key: value for key, value in given.items() if value is not None and key not in OF_OTHERS}
    for key, value in kwargs.items():
        if key in ONLY and value != ONLY[key]:
            raise UserError(f"{where}: {key}={value} is not what mmframe does; set --gen_kwargs {key}={ONLY[key]}")
        if key not in ONLY and key not in READ:
            known = suggest(key, (*READ, *ONLY))
            raise UserError(f"{where}: mmframe cannot honour {key}={value!r} of generation_kwargs; {known}")
    stop = [text for key in ("until", "stop_sequences") for text in _texts(kwargs.get(key, ()))]
    drawn: dict[str, Any] = {}
    temperature = float(kwargs.get("temperature", 1.0 if kwargs.get("do_sample") else 0.0))
    if kwargs.get("do_sample", True) and temperature != 0:  # as transformers: else temperature and its like say nothing
        drawn = {key: kwargs[key] for key in ("top_p", "top_k") if key in kwargs} | {"temperature": temperature}
    try:
        return SamplingParams(
            max_new_tokens=int(kwargs.get("max_new_tokens", max_new_tokens)),
            repetition_penalty=float(kwargs.get("repetition_penalty", 1.0)),
            stop=tuple(text for text in stop if stop_at_blank_line or text != BLANK_LINE),
            seed=int(kwargs.get("seed", 0)) + draw,
            **drawn,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
