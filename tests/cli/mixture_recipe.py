"""A recipe of a mixture with its data, for the command line's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.mixtures import pairs

RECIPE = """
base: toy/_common
checkpoint_every: 1
model:
  router: {class_path: ModalityRouter, init_args: {experts_at: {ffn: all}}}
  freezing: {class_path: Everything, init_args: {text_lr: 1e-3, embedder_lr: 1e-3, experts_lr: 1e-3}}
data:
  class_path: MixtureData
  init_args:
    sources:
      talks: {class_path: JsonlRecords, init_args: {annotations: talks.jsonl, jpeg_noise: true}}
      words: {class_path: TextCorpus, init_args: {texts: words.txt, repeat: 0.5}}
    max_tokens: 300
    max_tiles: 2
    batch_size: 2
    prompts: describe
    max_bad_fraction: 0.2
trainer: {max_steps: 12, limit_val_batches: 0, log_every_n_steps: 1, accumulate_grad_batches: 2}
"""


@pytest.fixture(scope="module")
def mixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its data: pictures with captions, one cut off and one missing, and a text."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "mine.yaml").write_text(RECIPE)
    lines = [{"id": r.key, "image": [p.name for p in r.images], "caption": r.caption} for r in pairs(folder, 30)]
    noise = Image.effect_noise((90, 90), 70).convert("RGB")
    noise.save(folder / "half.jpg")
    (folder / "half.jpg").write_bytes((folder / "half.jpg").read_bytes()[:1500])
    lines += [
        {"id": "half", "image": "half.jpg", "caption": "half"},
        {"id": "gone", "image": "gone.jpg", "caption": "x"},
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "words.txt").write_text("\n\n".join(f"paragraph {n} " + "of words " * (n % 4) for n in range(20)))
    return folder


@pytest.fixture
def folder(mixture_folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in the folder of the recipe, with a cache of its own there."""
    monkeypatch.chdir(mixture_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(mixture_folder / "cache"))
    return mixture_folder
