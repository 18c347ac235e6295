"""Fine-tunes a trained checkpoint on a small real set in three ways; the loss on held-out pictures before and after.

`python -m experiments.finetune --start runs/demo/s2_instruction` writes experiments/results/finetune_cpu.json. The set:
emoji and flags of the demo data, their questions as conversations of the LLaVA form.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from experiments.bench.timing import write_result
from mmframe.cli.main import main as mmframe
from mmframe.cli.run_dir import read_json
from mmframe.data import InstructionData
from mmframe.loading import load
from mmframe.objectives import NextToken
from mmframe.paths import data_path

SOURCES = ("emoji", "flags")
WAYS = {
    "all parameters": ["--model.freezing.text_lr=2e-5", "--model.freezing.embedder_lr=4e-5",
                       "--model.freezing.experts_lr=4e-5"],
    "experts and embedder": ["--model.freezing=VisualParameters", "--model.freezing.embedder_lr=4e-5",
                             "--model.freezing.experts_lr=1e-4"],
    "LoRA": ["--model.adapter=LoRA", "--model.freezing=LoRAParameters", "--model.freezing.lr=4e-4"],
}  # fmt: skip


def write_conversations(split: str, target: Path) -> Path:
    """The questions of the demo's sources as conversations, with absolute paths of pictures."""
    lines = []
    for source in SOURCES:
        file = data_path(f"demo:{source}/{split}.jsonl")
        for record in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            turns = []
            for number, (question, answer) in enumerate(record["questions"]):
                turns += [{"from": "human", "value": question if number else f"<image>\n{question}"}]
                turns += [{"from": "gpt", "value": answer}]
            image = str((file.parent / record["image"]).absolute())
            lines.append(json.dumps({"id": record["id"], "image": image, "conversations": turns}))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


@torch.no_grad()
def held_out_loss(checkpoint: Path, records: Path) -> float:
    """Mean loss for a supervised token, in fp32."""
    model = load(checkpoint, dtype=torch.float32)
    data = InstructionData(str(records), val=str(records), max_tiles=1)
    assert model.net.patch_embedder is not None
    data.connect(model.processor, model.net.patch_embedder)
    sums = [NextToken()(model.net, batch) for batch in data.val_dataloader()]
    return float(sum(total for total, _ in sums) / sum(weight for _, weight in sums))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.finetune", description=__doc__)
    parser.add_argument("--start", type=Path, required=True, help="checkpoint: run directory of a stage, or an import")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/finetune"), help="where the runs go")
    parser.add_argument("--steps", type=int, default=-1, help="most steps of each way (default: an epoch)")
    args = parser.parse_args(argv)
    train, val = (write_conversations(split, args.run_dir / f"{split}.jsonl") for split in ("train", "val"))
    before = held_out_loss(args.start, val)
    print(f"start: held-out loss {before:.4f}", flush=True)
    ways: dict[str, Any] = {}
    for name, words in WAYS.items():
        folder = args.run_dir / name.replace(" ", "_")
        common = [f"--start_from={args.start}", f"--data.annotations={train}", "--data.max_tiles=1",
                  "--data.batch_size=16", "--data.num_workers=0", "--trainer.accumulate_grad_batches=1",
                  f"--trainer.max_steps={args.steps}", "--trainer.accelerator=cpu"]  # fmt: skip
        code = mmframe(["fit", "--config", "finetune", "--run-dir", str(folder), *common, *words])
        if code:
            sys.exit(code)
        done = read_json(folder / "done.json")
        after = held_out_loss(folder, val)
        ways[name] = {"held_out_loss": round(after, 4), "steps": done["steps"], "seconds": done["seconds"]}
        print(f"{name}: held-out loss {before:.4f} -> {after:.4f}", flush=True)
    records = {name: len(file.read_text().splitlines()) for name, file in (("train", train), ("held_out", val))}
    figures = {"records": records, "batch_size": 16, "held_out_loss_before": round(before, 4), "after": ways}
    command = f"python -m experiments.finetune --start {args.start} --steps {args.steps}"
    print(write_result("finetune_cpu", command, figures))


if __name__ == "__main__":
    main()
