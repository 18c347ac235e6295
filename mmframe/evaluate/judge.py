"""Scoring by an LLM judge what rules cannot score: an option, never a silent part of a score.

A task says in its `judge` entry what a judge is asked: ``{template: extract}`` (MathVista) or ``{template: grade}``
(MM-Vet). Its metric is a JudgedMetric, which says about which answers (those that its rules cannot read, or all), and
reads the replies. The runner has two lines more, between the last answer and the score, on one rank:

    if judge is not None and task.judge is not None:
        rows, record = judge.apply(task, metric, rows)   # JudgeFailed, exit code 2, unless all were judged

`rows` are lines of answers.jsonl; those that come back have the verdict in their reference, so that ``metric.update``
scores them like any others. answers.jsonl itself stays as it is, so that a later run without a judge scores by rules.
`record` is what Result.judge holds, and Result.matcher is then ``judge``; without these two lines it is ``rules``.

Replies are written to judge.jsonl beside the answers as they come. After a kill, or when some calls failed, the same
run asks only for the rest. A reply that cannot be read is asked for again and then counted as failed: never guessed,
never scored by rules instead. While one is missing there is no result.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.evaluate.judge_endpoint import KEY, Endpoint, Refused, TryAgain
from mmframe.evaluate.judge_prompts import digest, filled, template
from mmframe.metrics.judged import VERDICT, JudgedMetric, Unreadable
from mmframe.tasks.task import Task

JUDGEMENTS = "judge.jsonl"
"""File of a result folder. A line: {"key", "id", "reply", "served", "temperature"}, or {"key", "id", "failed"}."""
_ENTRY = ("template",)
NOT_ASKED = "not asked any more"
LONGEST_WAIT = 60.0
"""Seconds between two attempts, also where the server asks for more."""


class JudgeFailed(UserError):
    """Some answers have no verdict; running again asks for those alone."""

    def __init__(self, message: str, judged: int, failed: int) -> None:
        super().__init__(message)
        self.judged, self.failed = judged, failed


class Judge:
    """An LLM behind an OpenAI-compatible endpoint; its key is in the environment, MMFRAME_JUDGE_KEY.

    Args:
        endpoint: Base URL, as ``https://host/v1``.
        model: Its name there.
        cache: judge.jsonl of the result; the caller keeps other processes out of the folder.
        timeout: Seconds for one reply.
        attempts: How often one answer is asked about before it counts as failed.
        concurrency: Questions under way at once.
        wait: Seconds before the second attempt; doubled each time, or what the server asks for.
        give_up: Failures in a row after which no more is asked.
        progress: Called with the number of verdicts and of answers to judge.

    Raises:
        UserError: The URL or the model's name is missing or wrong.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        cache: Path,
        *,
        timeout: float = 60,
        attempts: int = 5,
        concurrency: int = 8,
        wait: float = 1,
        give_up: int = 10,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.endpoint = Endpoint(endpoint, model, os.environ.get(KEY, ""), timeout)
        self.cache, self.progress = cache, progress or (lambda done, of: None)
        self.attempts, self.concurrency, self.wait, self.give_up = attempts, concurrency, wait, give_up
        self._writing, self._stop = threading.Lock(), threading.Event()

    def apply(
        self, task: Task, metric: Any, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Judges what the metric asks for.

        Args:
            task: Its `judge` says what is asked; without one nothing is.
            metric: The task's, a JudgedMetric; it is not updated.
            rows: Lines of answers.jsonl, with "id", "prompt", "answer" and "reference", or with "error".

        Returns:
            The rows, with verdicts in the references of those that were judged; and
            {"model", "served", "endpoint", "prompt_digest", "judged", "failed": 0}, or None if the task has no judge.

        Raises:
            JudgeFailed: Some calls failed for good.
            UserError: The endpoint takes no question at all, or the task's entry does not fit.
        """
        if task.judge is None:
            return [dict(row) for row in rows], None
        text = self._template(task, metric)
        asked = {
            number: (str(row["id"]), filled(text, **_places(row)), row["reference"])
            for number, row in enumerate(rows)
            if "error" not in row and (metric.asks == "all" or metric.score(row["answer"], _plain(row))["unmatched"])
        }
        replies, failures = self._replies(asked, metric.read_judge)
        if failures:
            most, count = Counter(reason for reason in failures if reason != NOT_ASKED).most_common(1)[0]
            raise JudgeFailed(
                f"judge {self.endpoint.model} at {self.endpoint.name}: no verdict on {len(failures)} of {len(asked)} "
                f"answers of {task.name} ({count} times: {most}); all answers and {len(replies)} replies are kept in "
                f"{self.cache.parent}, so the same command asks for the rest alone; without --judge rules score",
                len(replies),
                len(failures),
            )
        judged = [dict(row) for row in rows]
        for number, line in replies.items():
            verdict = metric.read_judge(line["reply"], rows[number]["reference"])
            judged[number]["reference"] = _plain(rows[number]) | {VERDICT: verdict}
        return judged, {
            "model": self.endpoint.model,
            "served": sorted({line["served"] for line in replies.values()}),
            "endpoint": self.endpoint.name,
            "prompt_digest": digest(text),
            "judged": len(replies),
            "failed": 0,
        }

    def _template(self, task: Task, metric: Any) -> str:
        entry = dict(task.judge or {})
        if wrong := [key for key in entry if key not in _ENTRY]:
            raise UserError(f"task {task.name}: judge has no key {wrong[0]!r}; {suggest(wrong[0], _ENTRY)}")
        if not isinstance(metric, JudgedMetric):
            raise UserError(f"task {task.name}: has a judge, but its metric {metric.name} takes no verdicts")
        return template(str(entry.get("template", "")), f"task {task.name}: judge")

    def _replies(
        self, asked: Mapping[int, tuple[str, str, Any]], read: Callable[[str, Any], Any]
    ) -> tuple[dict[int, dict[str, Any]], list[str]]:
        """The accepted line of each row, old or new, and a reason for each row without one."""
        keys = {number: self._key(name, prompt) for number, (name, prompt, _) in asked.items()}
        known = self._known()
        found = {
            number: known[keys[number]] for number in asked if _readable(known.get(keys[number]), asked[number], read)
        }
        rest = [number for number in asked if number not in found]
        failures: list[str] = []
        in_a_row = 0
        self._stop.clear()
        self.progress(len(found), len(asked))
        with ThreadPoolExecutor(self.concurrency, "judge") as pool:
            calls = {pool.submit(self._ask, keys[number], *asked[number], read): number for number in rest}
            try:
                for call in as_completed(calls):
                    line = call.result()
                    in_a_row = in_a_row + 1 if "failed" in line else 0
                    if "failed" in line:
                        failures.append(line["failed"])
                    else:
                        found[calls[call]] = line
                        self.progress(len(found), len(asked))
                    if in_a_row >= self.give_up:
                        self._stop.set()
            finally:  # also after Ctrl-C: what is under way comes in and is kept, nothing new is asked
                self._stop.set()
        return found, failures

    def _ask(self, key: str, name: str, prompt: str, reference: Any, read: Callable[[str, Any], Any]) -> dict[str, Any]:
        """Asks about one answer until its reply can be read; returns the line that it wrote."""
        reason, useless, after = "", 0, None
        for attempt in range(self.attempts):
            pause = self.wait * 2 ** (attempt - 1) if after is None else after
            if self._stop.wait(min(pause, LONGEST_WAIT) if attempt else 0):
                return {"failed": reason or NOT_ASKED}
            temperature = min(0.5 * useless, 1.0)  # the same words at 0 would get the same useless reply
            try:
                reply = self.endpoint.ask(prompt, temperature)
                read(reply.text, reference)
            except Refused as error:
                reason = str(error)
                break
            except TryAgain as error:
                reason, after = str(error), error.after
                useless += error.spoke
            except Unreadable as error:
                reason, after = f"a reply that is {error}: {reply.text.strip()[:60]!r}", None
                useless += 1
            except UserError:
                self._stop.set()  # the others would hear the same
                raise
            else:
                line = {"key": key, "id": name, "reply": reply.text, "served": reply.served, "temperature": temperature}
                self._write(line)
                return line
        line = {"key": key, "id": name, "failed": reason}
        self._write(line)
        return line

    def _key(self, name: str, prompt: str) -> str:
        """What has to be the same for a reply to count: judge, example, and every word of the question."""
        known_by = json.dumps([self.endpoint.name, self.endpoint.model, name, prompt])
        return hashlib.sha256(known_by.encode()).hexdigest()[:32]

    def _known(self) -> dict[str, dict[str, Any]]:
        """The replies in the file; a last line that a kill cut off is taken away."""
        if not self.cache.exists():
            return {}
        text = self.cache.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self.cache, whole)
        found = {}
        for number, line in enumerate(text[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                found |= {row["key"]: row} if "reply" in row else {}
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self.cache} line {number}: was not written by a judge; set the file aside, all is asked again"
                ) from None
        return found

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._writing, open(self.cache, "ab") as stream:
            stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", errors="replace"))
            stream.flush()
            os.fsync(stream.fileno())


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row["reference"].items() if key != VERDICT}


def _places(row: Mapping[str, Any]) -> dict[str, str]:
    """What fills a template: the question without its pictures' places, the reference, and what the model said."""
    reference = row["reference"]
    question = str(reference.get("question") or row["prompt"]).replace("<image>", "").strip()
    right = str(reference.get("answer", "")).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return {"question": question, "reference": " ".join(right.split()), "answer": str(row["answer"]).strip()}


def _readable(line: Mapping[str, Any] | None, asked: tuple[str, str, Any], read: Callable[[str, Any], Any]) -> bool:
    if line is None:
        return False
    try:
        read(line["reply"], asked[2])
    except Unreadable:
        return False  # the reading has changed since
    return True
