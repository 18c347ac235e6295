"""What is saved where several questions of a batch are about one picture: prompts whole over the picture once.

`python -m experiments.bench.shared_prefix` writes experiments/results/shared_prefix_cpu.json. The 67 M model of
experiments.bench.inference, a batch of 8 prompts of 256 visual and 24 text tokens; 1, 2, 4 or 8 of them ask of one
picture.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial

import torch

from experiments.bench.inference import SIZES, VISUAL, routed_net
from experiments.bench.timing import compare, ratio, write_result
from mmframe.batch import Sample
from mmframe.generation import run_prompts
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.shared_prefix import run_beginnings

ROWS, TEXT = 8, 24


def prompts(questions: int) -> list[Sample]:
    """A batch with so many questions a picture."""
    generator = torch.Generator().manual_seed(1)
    kinds = [int(TokenKind.IMAGE)] * VISUAL + [int(TokenKind.TEXT)] * TEXT
    batch = []
    for row in range(ROWS):
        if row % questions == 0:
            ids = torch.randint(0, SIZES["vocab_size"], (VISUAL + TEXT,), generator=generator)
            whole = Sample.from_ids(ids, kinds=kinds, tiles=torch.randn(1, 3, 448, 448, generator=generator))
        ids = whole.ids.clone()
        ids[VISUAL:] = torch.randint(0, SIZES["vocab_size"], (TEXT,), generator=generator)
        ids[VISUAL] = row  # what they have in common ends here
        batch.append(replace(whole, ids=ids))
    return batch


def run(net: MultimodalLM, batch: list[Sample], shared: bool) -> None:
    cache = net.backbone.new_cache(ROWS, VISUAL + TEXT)
    run_prompts(net, run_beginnings(net, batch, cache) if shared else batch, cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    net = routed_net().eval()
    figures = {}
    for questions in (1, 2, 4, 8):
        batch = prompts(questions)
        seconds = compare({s: partial(run, net, batch, s == "shared") for s in ("whole", "shared")}, args.rounds)
        kept = ROWS // questions * VISUAL + ROWS * TEXT
        figures[f"{questions} a picture"] = {
            "whole_over_shared": ratio(seconds, "whole", "shared"),
            "tokens_whole_over_shared": ROWS * (VISUAL + TEXT) / kept,
            "seconds": seconds,
        }
    print(json.dumps({name: {k: v for k, v in f.items() if k != "seconds"} for name, f in figures.items()}, indent=1))
    print(write_result("shared_prefix_cpu", "python -m experiments.bench.shared_prefix", figures))


if __name__ == "__main__":
    main()
