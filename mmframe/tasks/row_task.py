"""RowTask: the rows of official files under a spec, as a Task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmframe.data.files import locate
from mmframe.data.pictures import Picture
from mmframe.errors import UserError
from mmframe.tasks.fields import as_text, evaluate
from mmframe.tasks.prompt import continuations, lettered, user_text, with_pictures
from mmframe.tasks.readers import Files, Rows
from mmframe.tasks.spec import Spec
from mmframe.tasks.task import Decoding, Example, Task


class RowTask(Task):
    """A task whose examples are built from rows when they are asked for.

    Args:
        spec: The YAML.
        rows: What the reader gave, those that are asked.
        files: Finds pictures that rows name by path.
        shots: Rows that examples come from; the first `count` of those with an equal `match` precede each question,
            as turns of the user and the model.
        prompt_digest, data_fingerprint: as in `Task`.
    """

    def __init__(
        self, spec: Spec, rows: Rows, files: Files, shots: Rows | None, prompt_digest: str, data_fingerprint: str
    ) -> None:
        self.spec, self.rows, self.files = spec, rows, files
        self.name, self.about, self.split, self.mode = spec.name, spec.about, spec.split, spec.mode
        self.metric, self.max_tiles, self.judge = spec.metric, spec.max_tiles, spec.judge
        self.scored, self.submission = bool(spec.reference), spec.submission.get("file")
        stop = spec.decoding.get("stop") or ()
        self.decoding = Decoding(spec.decoding.get("max_new_tokens", Decoding.max_new_tokens), tuple(stop))
        self.prompt_digest, self.data_fingerprint = prompt_digest, data_fingerprint
        self._shots: dict[Any, list[Mapping[str, str]]] = {}
        if shots is not None:
            self._shots = self._turns_of(shots)

    def __len__(self) -> int:
        return len(self.rows.rows)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._example(self.rows.rows[index])
        except UserError as error:
            raise UserError(f"task {self.name}: {self.rows.places[index]}: {error}{self.files.hint}") from error

    def id_of(self, index: int) -> str:
        """The id of an example, without building it."""
        return as_text(evaluate(self.spec.fields["id"], self.rows.rows[index]))

    def reference_of(self, index: int) -> dict[str, Any]:
        """The reference of an example, without building it."""
        return self._reference(self._scope(self.rows.rows[index]))

    def submitted(self, index: int, answer: str) -> dict[str, Any]:
        scope = self._scope(self.rows.rows[index]) | {"answer": answer}
        return {key: evaluate(template, scope) for key, template in self.spec.submission["row"].items()}

    def _scope(self, row: Mapping[str, Any]) -> dict[str, Any]:
        made = {key: evaluate(template, row) for key, template in self.spec.fields.items()}
        scope = {**row, **made}
        if "options" in made:
            scope["options"] = lettered(made["options"])
        if self.mode == "likelihood":
            scope["continuations"] = list(continuations(self.spec, scope.get("options", {})))
        return scope

    def _reference(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        return {key: evaluate(template, scope) for key, template in self.spec.reference.items()}

    def _example(self, row: Mapping[str, Any]) -> Example:
        scope = self._scope(row)
        options = scope.get("options", {})
        text = user_text(self.spec, scope, options)
        text, pictures = with_pictures(self.spec, text, self._pictures(scope.get("images")))
        turns: list[Mapping[str, str]] = []
        if self.spec.system is not None:
            turns.append({"from": "system", "value": self.spec.system})
        if self.spec.shots is not None:
            turns += self._shots_for(scope)
        turns.append({"from": "human", "value": text})
        return Example(
            id=as_text(scope["id"]),
            turns=tuple(turns),
            images=pictures,
            reference=self._reference(scope),
            options=tuple(scope["continuations"]) if self.mode == "likelihood" else (),
        )

    def _pictures(self, found: Any) -> list[Picture]:
        listed = found if isinstance(found, list) else [] if found in (None, "") else [found]
        return [self._picture(each) for each in listed]

    def _picture(self, found: Any) -> Picture:
        if not isinstance(found, (str, Path)):
            return found
        path = Path(locate(self.files.place(str(found))))
        if not path.is_file():
            raise UserError(f"its picture {path} is missing")
        return path

    def _shots_for(self, scope: Mapping[str, Any]) -> list[Mapping[str, str]]:
        assert self.spec.shots is not None
        key, count = evaluate(self.spec.shots.get("match", ""), scope), int(self.spec.shots["count"])
        turns = self._shots.get(key, [])[: 2 * count]
        if len(turns) < 2 * count:
            raise UserError(f"{count} examples are needed before it, there are {len(turns) // 2} for {key!r}")
        return turns

    def _turns_of(self, shots: Rows) -> dict[Any, list[Mapping[str, str]]]:
        assert self.spec.shots is not None
        made: dict[Any, list[Mapping[str, str]]] = {}
        for row, place in zip(shots.rows, shots.places, strict=True):
            try:
                scope = self._scope(row)
                text = user_text(self.spec, scope, scope.get("options", {}))
                answer = as_text(evaluate(self.spec.shots["answer"], scope))
                key = evaluate(self.spec.shots.get("match", ""), scope)
            except UserError as error:
                raise UserError(f"task {self.name}: {place}: {error}{self.files.hint}") from error
            made.setdefault(key, []).extend([{"from": "human", "value": text}, {"from": "gpt", "value": answer}])
        return made
