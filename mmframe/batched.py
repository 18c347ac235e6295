"""Many prompts through one engine: batches of like length, encoded ahead of time so that the engine does not wait."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from mmframe.batch import Sample
from mmframe.engine import Completion, Engine
from mmframe.errors import UserError
from mmframe.sampling import SamplingParams

WINDOW = 8  # batches whose prompts are sorted together; a kill loses at most so many
AHEAD = 1  # batches that are encoded while the engine runs another: their pictures take memory
THREADS = 4

Encoded = TypeVar("Encoded")


def batches(
    count: int,
    batch_size: int,
    length: Callable[[int], int],
    wanted: Callable[[int], bool],
    kin: Callable[[int], Hashable] = int,
) -> Iterator[list[int]]:
    """Places 0..count-1 in batches of like length.

    Places are sorted inside of windows that lie fixed, so a continued run makes the same batches as an uninterrupted
    one. Long ones come first: if they do not fit into memory, it shows at once.

    Args:
        count: Prompts.
        batch_size: Of a batch.
        length: Tokens of a prompt, nearly. Is asked when the window of the place begins.
        wanted: Whether a place has no answer yet; a batch in which none is wanted is left out.
        kin: What places that stay together have in common, e.g. their picture, which then runs once.
    """
    for start in range(0, count, WINDOW * batch_size):
        window = range(start, min(start + WINDOW * batch_size, count))
        if not any(map(wanted, window)):
            continue
        lengths = {place: length(place) for place in window}
        longest: dict[Hashable, tuple[int, int]] = {}  # of kin: that it is first, and which it is
        for place in window:
            longest[kin(place)] = min(longest.get(kin(place), (0, place)), (-lengths[place], place))
        order = sorted(window, key=lambda place: (longest[kin(place)], -lengths[place], place))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            if any(map(wanted, batch)):
                yield batch


def encoded_ahead(
    chosen: Iterable[Sequence[int]], encode: Callable[[int], Encoded]
) -> Iterator[dict[int, Encoded | UserError]]:
    """Encodes batches in threads, one ahead of the one that is asked for: by place, what `encode` gives or raises.

    Args:
        chosen: Batches of places.
        encode: Of one place: reads and decodes its pictures. A UserError belongs to its place and ends nothing.
    """

    def tried(place: int) -> Encoded | UserError:
        try:
            return encode(place)
        except UserError as error:
            return error

    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="encode")
    waiting: deque = deque()
    try:
        for batch in chosen:
            waiting.append([(place, pool.submit(tried, place)) for place in batch])
            if len(waiting) > AHEAD:
                yield {place: made.result() for place, made in waiting.popleft()}
        while waiting:
            yield {place: made.result() for place, made in waiting.popleft()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def answer_prompts(
    engine: Engine, prompts: Mapping[int, Sample | UserError], params: Callable[[int], SamplingParams]
) -> dict[int, Completion | UserError]:
    """Answers a batch from `encoded_ahead`, by place. One that cannot be answered (too long) spoils no other.

    Args:
        engine: Answers.
        prompts: By place; an error stays what it is.
        params: Of a place.

    Raises:
        UserError: the GPU is out of memory.
    """
    samples = {place: prompt for place, prompt in prompts.items() if isinstance(prompt, Sample)}
    made: dict[int, Completion | UserError] = {
        place: prompt for place, prompt in prompts.items() if isinstance(prompt, UserError)
    }
    if not samples:
        return made
    try:
        answers = engine.generate(list(samples.values()), [params(place) for place in samples])
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory with {len(samples)} prompts at once; go on with a smaller --batch-size"
        ) from error
    except UserError as error:
        if len(samples) == 1:
            return made | dict.fromkeys(samples, error)
        for place, sample in samples.items():
            made |= answer_prompts(engine, {place: sample}, params)
        return made
    return made | dict(zip(samples, answers, strict=True))
