"""Peak memory of a training step against what it must hold, for each stage's freezing policy.

`python -m experiments.bench.memory` writes experiments/results/memory_cpu.json.

A process of its own trains two steps in bf16 on a model with the vocabulary of Mono-InternVL (92,553), and says how far
its resident memory rose above what it was with everything imported. The floor is computed: 2 bytes a weight, 14 more a
trained one (gradient, fp32 master, two moments), and the input of every layer. All else is activations and logits,
which `recompute` and `chunk` are there to remove.

T tokens, S supervised tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from components.freezing.delta_tuning import Everything, VisualAndAttention, VisualParameters
from experiments.bench.packing import documents
from experiments.bench.timing import write_result
from mmframe.batch import Batch

SIZES: dict[str, Any] = dict(
    hidden_size=512, num_layers=8, num_heads=8, kv_heads=4, intermediate_size=2048, vocab_size=92_553
)
POLICIES: dict[str, Any] = {
    "s1_1_concept, s1_2_semantic": VisualParameters(1e-4, 1e-4),
    "s1_3_alignment": VisualAndAttention(1e-4, 1e-4, 1e-4),
    "s2_instruction": Everything(1e-4, 1e-4, 1e-4),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": dict(recompute=False, chunk=None),
    "recompute": dict(recompute=True, chunk=None),
    "recompute, chunk 256": dict(recompute=True, chunk=256),
}
MIB = 2**20


def resident(peak: bool = False) -> int:
    """Bytes of this process that are in memory; the most there were since `forget_peak`."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM" if peak else "VmRSS")
    )
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(stage: str, way: str, tokens: int) -> dict[str, float]:
    """One cell of the table, in this process."""
    import lightning.pytorch as pl
    from torchdata.stateful_dataloader import StatefulDataLoader

    from components.backbones.internlm2 import InternLM2
    from components.patch_embedders.mono import MonoPatchEmbedder
    from components.routers.modality import ModalityRouter
    from mmframe.module import MultimodalModule
    from mmframe.objectives import NextToken
    from mmframe.optim import AdamWSchedule
    from mmframe.processing import ByteTokenizer, ChatProcessor

    batch = Batch.collate(documents(tokens, seed=0))
    before = resident()
    module = MultimodalModule(
        backbone=InternLM2(**SIZES),
        patch_embedder=MonoPatchEmbedder(hidden_size=SIZES["hidden_size"], channels=256),
        router=ModalityRouter(dict.fromkeys(("q", "k", "v", "ffn"), "all")),
        freezing=POLICIES[stage],
        processor=ChatProcessor(ByteTokenizer()),
        optim=AdamWSchedule(schedule="constant"),
        objective=NextToken(chunk=WAYS[way]["chunk"]),
        recompute=WAYS[way]["recompute"],
        expert_backend="torch",
    )
    module.to(torch.bfloat16)
    parameters, trained = (
        sum(p.numel() for p in module.net.parameters() if p.requires_grad >= only) for only in (0, 1)
    )
    forget_peak()
    trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-true", max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, StatefulDataLoader([batch] * 2, batch_size=None))
    state = 2 * parameters + 14 * trained
    inputs = 2 * SIZES["num_layers"] * tokens * SIZES["hidden_size"]
    return {
        "parameters": parameters,
        "trained": trained,
        "supervised": batch.supervised.numel(),
        "peak_mib": (resident(peak=True) - before) / MIB,
        "weights_gradients_state_mib": state / MIB,
        "floor_mib": (state + inputs) / MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=2048, help="of the step (default: %(default)s)")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(*args.cell.split("|"), args.tokens)))
        return
    cells: dict[str, dict[str, Any]] = {}
    for stage in POLICIES:
        for way in WAYS:
            words = ["--cell", f"{stage}|{way}", "--tokens", str(args.tokens)]
            command = [sys.executable, "-m", "experiments.bench.memory", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cell = json.loads(done.stdout.splitlines()[-1])
            cell["peak_over_floor"] = cell["peak_mib"] / cell["floor_mib"]
            cells.setdefault(stage, {})[way] = {k: round(v, 3) for k, v in cell.items()}
            print(f"{stage:<28} {way:<22} {cell['peak_mib']:8.0f} MiB, floor {cell['floor_mib']:8.0f}", flush=True)
    print(
        write_result(
            "memory_cpu", "python -m experiments.bench.memory", {"sizes": SIZES, "tokens": args.tokens, "stages": cells}
        )
    )


if __name__ == "__main__":
    main()
