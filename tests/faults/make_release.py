"""Makes the checkpoint that stands for a release: `python -m tests.faults.make_release` (once for each version).

It trains the recipe below for two steps and stops, and writes what the rest of the run then gives.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

import mmframe
from mmframe.batch import Batch
from mmframe.cli.main import main
from mmframe.data import ToyData
from mmframe.loading import LoadedModel, from_pretrained

FOLDER = Path(__file__).parents[1] / "fixtures" / "checkpoints"
RECIPE = """# What the checkpoint of this release was trained with.
base: toy/_common
model:
  backbone:
    init_args: {hidden_size: 32, num_heads: 2, kv_heads: 1, intermediate_size: 64}
  patch_embedder:
    init_args: {image_size: 16, channels: 8}
  router: {class_path: ModalityRouter, init_args: {experts_at: {ffn: all}}}
  freezing: {class_path: VisualParameters, init_args: {embedder_lr: 1e-3, experts_lr: 1e-3}}
data:
  init_args: {size: 16, batch_size: 4, val_size: 0}
trainer: {max_steps: 4, precision: 32-true, limit_val_batches: 0, log_every_n_steps: 1}
"""
WORDS = ["fit", "--config", "recipe.yaml", "--run-dir", "run", "--trainer.enable_progress_bar=false"]


def logits(model: LoadedModel) -> torch.Tensor:
    """Of four toy rows, [S, V]."""
    data = ToyData(size=4, val_size=0).connect(model.processor, model.net.patch_embedder)
    assert data.train_rows is not None
    rows = [data.train_rows.sample(0, row) for row in range(4)]
    rows = [replace(row, tiles=model.processor.normalize(row.tiles, row.image_tiles)) for row in rows]
    batch = Batch.collate(rows)
    with torch.no_grad():
        return model.net.eval()(batch).logits


def make() -> None:
    target = FOLDER / f"v{mmframe.__version__}"
    if target.exists():
        raise SystemExit(f"{target} exists; a release is never made again")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.argv = ["mmframe", *WORDS]  # noted in the files
        Path("recipe.yaml").write_text(RECIPE)
        assert main([*WORDS, "--checkpoint_every=2", "--checkpoints.keep_every=2"]) == 0
        run = Path("run")
        target.mkdir(parents=True)
        shutil.copy("recipe.yaml", target)
        (target / "run" / "checkpoints").mkdir(parents=True)
        for name in ("recipe.yaml", "meta.json", "checkpoints/step-00000002.ckpt"):
            shutil.copy(run / name, target / "run" / name)
        shutil.copy(run / "weights.safetensors", target)
        save_file({"logits": logits(from_pretrained(target / "weights.safetensors"))}, target / "logits.safetensors")


if __name__ == "__main__":
    make()
