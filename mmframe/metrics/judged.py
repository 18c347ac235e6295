"""Metrics that an LLM judge can help, and what its reply has to look like."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from mmframe.metrics.base import MeanMetric

VERDICT = "judged"
"""Key of a reference under which mmframe.evaluate.judge puts what `read_judge` made of a reply."""
NO_ANSWER = "NONE"
"""What a judge that extracts writes where the answer says nothing; the verdict is then None."""


class JudgedMetric(MeanMetric):
    """Base of metrics that score by rules, or by a judge's verdict where the reference has one under `VERDICT`.

    Without verdicts they are metrics like any other. A row says in `by` which of the two scored it.
    """

    extracts = True
    asks: ClassVar[str]
    """Which answers a judge is asked about: ``unmatched`` (those the rules cannot read) or ``all``."""

    @abstractmethod
    def read_judge(self, reply: str, reference: Mapping[str, Any]) -> Any:
        """The verdict in a judge's reply, as JSON data.

        Raises:
            Unreadable: the reply is none; it is never guessed what it may have meant.
        """


class Unreadable(ValueError):
    """A judge's reply that says nothing that could be scored."""
