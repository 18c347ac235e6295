"""What evaluators share: files of text, losses of rows, standard errors.

S supervised tokens, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import torch

from mmframe.batch import Batch, Sample
from mmframe.data.files import expand, open_stream
from mmframe.errors import UserError
from mmframe.loading import LoadedModel
from mmframe.objectives import cross_entropy


def read_texts(file: str, key: str, count: int | None = None) -> Iterator[str]:
    """The texts of a JSONL file, in its order.

    Args:
        file: Path of one file; `demo:` and `offline:` are known.
        key: Key of the text in a line.
        count: At most so many; None: all.

    Raises:
        UserError: the file is missing, or a line has no such text.
    """
    (path,) = expand(file)
    with open_stream(path) as lines:
        for number, line in enumerate(lines):
            if number == count:
                return
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise UserError(f"evaluator: {path} line {number + 1} has no text {key!r}")
            yield row[key]


@torch.no_grad()
def losses(model: LoadedModel, samples: Sequence[Sample], rows: int) -> list[torch.Tensor]:
    """Cross entropy of each supervised token, nats, fp32 on the host: one tensor a sample.

    Args:
        model: In eval mode.
        samples: Rows with labels.
        rows: Rows of a forward pass; more are faster, none of the figures depends on it beyond rounding.
    """
    net = model.net
    device = next(net.parameters()).device
    found: list[torch.Tensor] = []
    for start in range(0, len(samples), rows):
        part = samples[start : start + rows]
        batch = Batch.collate(part).to(device)
        ce_S = cross_entropy(net(batch).logits, batch.labels[batch.supervised]).cpu()
        row_T = torch.arange(len(part)).repeat_interleave(torch.tensor(batch.row_lengths))
        row_S = row_T[batch.supervised.cpu()]
        found += [ce_S[row_S == row] for row in range(len(part))]
    return found


def rate(name: str, sums: Sequence[float], weights: Sequence[float]) -> dict[str, float]:
    """NAME: sum(sums) / sum(weights); NAME_se: its standard error over the items (ratio estimator), left out of a
    single item. Tokens of one item are not independent of one another; items are."""
    total, count = sum(weights), len(sums)
    mean = sum(sums) / total
    if count < 2:
        return {name: mean}
    residuals = sum((s - mean * w) ** 2 for s, w in zip(sums, weights, strict=True))
    return {name: mean, f"{name}_se": math.sqrt(residuals * count / (count - 1)) / total}


def percent(name: str, right: Sequence[bool]) -> dict[str, float]:
    """NAME: percent of right answers; NAME_se: its standard error; NAME_n: their number. Nothing of no answers."""
    if not right:
        return {}
    share, count = sum(right) / len(right), len(right)
    return {name: 100 * share, f"{name}_se": 100 * math.sqrt(share * (1 - share) / count), f"{name}_n": count}
