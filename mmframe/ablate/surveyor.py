"""The process that answers a survey: questions on stdin, answers in the last line of stdout, as JSON. With torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from mmframe import registry
from mmframe.ablate.budget import step_rows, steps_within
from mmframe.cli.data_job import component, geometry
from mmframe.cli.lightning_cli import qualify
from mmframe.data.base import MultimodalData, Rows
from mmframe.errors import UserError, nearest
from mmframe.experts import active_parameters
from mmframe.planning.model import count, meta_model

_data: dict[str, MultimodalData] = {}


def parameters(question: dict[str, Any]) -> dict[str, int]:
    """Parameters of a run's model, built on the meta device.

    total      of the last stage's model, additions of an adapter included
    trainable  that train in at least one stage
    active     that one token passes through, of text or image: all of the model, but of the experts at a site only the
               largest one
    """
    trained: dict[str, int] = {}
    net = None
    for parts in question["stages"].values():
        net, report = meta_model(parts)
        sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
        trained |= {name: sizes[name] for name in report.group_of}
    assert net is not None
    return {"total": count(net), "trainable": sum(trained.values()), "active": active_parameters(net)}


def steps(question: dict[str, Any]) -> int:
    """Optimiser steps within a budget; see mmframe.ablate.budget."""
    data = _connected(question)
    rows = data.train_rows
    assert rows is not None
    walk = step_rows(len(rows), data.batch_size, question["accumulate"], question["ranks"], question["limit"])
    by_tokens = question["unit"] == "tokens"

    def sizes() -> Iterator[int]:
        known = -1
        for epoch, places in walk:
            if epoch != known and hasattr(rows, "prepare"):
                rows.prepare(epoch)  # type: ignore[union-attr]
            known = epoch
            yield sum(tokens(rows, epoch, p % len(rows)) for p in places) if by_tokens else len(places)
        raise UserError("budget: an epoch has no batches; see data and trainer.limit_train_batches")

    return steps_within(question["amount"], sizes())


def tokens(rows: Rows, epoch: int, index: int) -> int:
    """Tokens of a row: as its plan says, or counted on the row itself."""
    return rows.tokens(epoch, index) if hasattr(rows, "tokens") else len(rows.sample(epoch, index))  # type: ignore


def metrics(question: dict[str, Any]) -> bool:
    """True: an evaluator can be made, and gives the figures that a grid wants of it.

    Raises:
        UserError: it cannot, or does not.
    """
    given = component(question["evaluator"]).metrics()
    for key in question["wanted"]:
        if key not in given:
            raise UserError(
                f"metrics: evaluator {question['name']!r} does not give {key!r}; {nearest(key, given)} it gives: "
                f"{', '.join(given)}"
            )
    return True


def _connected(question: dict[str, Any]) -> MultimodalData:
    """The data of a stage; kept, as stages and budgets share it."""
    parts = {key: question[key] for key in ("data", "processor", "patch_embedder")}
    key = json.dumps(parts, sort_keys=True)
    if key not in _data:
        data = component(parts["data"])
        _data[key] = data.connect(component(parts["processor"]), geometry(parts["patch_embedder"]))
    return _data[key]


def main() -> int:
    registry.discover()
    questions = qualify(json.loads(sys.stdin.read()))
    answers = {"parameters": parameters, "steps": steps, "metrics": metrics}
    try:
        found = [answers[question["ask"]](question) for question in questions]
    except UserError as error:
        print(f"mmframe: error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
