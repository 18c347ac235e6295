"""Small official checkpoints: the recorded ones of the reference, and folders made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers as hf
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmframe.batch import Batch
from mmframe.cli.main import main
from mmframe.model import MultimodalLM
from tests.helpers import all_logits
from tests.model.test_reference import recorded_rows, row_of, rows_of

REFERENCE = Path(__file__).parents[1] / "fixtures" / "reference"
MODELS = ("mono_v1", "modular_a_ln_noqk", "modular_b_rms_qk")
MARKERS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def state_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of an official folder, read by the safetensors library."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def official(folder: Path, name: str = "mono_v1", **changes: Any) -> Path:
    """A copy of a recorded checkpoint with a changed config; `llm__x` and `vision__x` change the parts' configs."""
    shutil.copytree(REFERENCE / name, folder)
    config = config_of(folder)
    for key, value in changes.items():
        part, _, inner = key.rpartition("__")
        (config[f"{part}_config"] if part else config)[inner] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_state(folder: Path, state: Mapping[str, Tensor], file: str = "model.safetensors") -> None:
    save_file(dict(state), folder / file)


def in_shards(folder: Path, count: int = 3) -> dict[str, list[str]]:
    """Cuts the model.safetensors of a folder into shards with an index; names by file."""
    state = state_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    files = {f"model-{i + 1:05}-of-{count:05}.safetensors": names[i::count] for i in range(count)}
    for file, some in files.items():
        write_state(folder, {name: state[name] for name in some}, file)
    index = {"metadata": {}, "weight_map": {name: file for file, some in files.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def text_llm(folder: Path, vocab: int = 512) -> Path:
    """The text path of the recorded Mono-InternVL as an InternLM2 of its own; rows beyond its 512 are random."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name.removeprefix("language_model."): tensor
        for name, tensor in state_of(REFERENCE / "mono_v1").items()
        if name.startswith("language_model.") and "feed_forward_ve" not in name
    }
    for name in ("model.tok_embeddings.weight", "output.weight"):
        state[name] = torch.cat([state[name], torch.randn(vocab - 512, 48)])
    config = config_of(REFERENCE / "mono_v1")["llm_config"]
    config |= {"architectures": ["InternLM2ForCausalLM"], "vocab_size": vocab}
    (folder / "config.json").write_text(json.dumps(config))
    write_state(folder, state)
    return folder


def word_tokenizer(folder: Path, size: int = 512, template: str = "") -> None:
    """A tokenizer.json of `size` words, markers last, and its tokenizer_config.json."""
    words = [f"w{i}" for i in range(size - len(MARKERS))] + list(MARKERS)
    made = hf.Tokenizer(hf.models.WordLevel(vocab={word: i for i, word in enumerate(words)}, unk_token="w0"))
    made.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([hf.AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    made.save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def run(*words: str | Path) -> int:
    """One command, as the command line runs it."""
    return main([str(word) for word in words])


def check_recorded_logits(net: MultimodalLM, name: str) -> None:
    """The released code's logits of one recorded model."""
    if name == "mono_v1":
        for case in ("text_only", "one_image", "two_tiles"):
            ours, theirs = all_logits(net, Batch.collate(rows_of(case))), recorded_rows(case, "logits")
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        return
    io, case = load_file(REFERENCE / "modular_io.safetensors"), name.removeprefix("modular_")
    sample = row_of(io[f"{case}/input_ids"][0])
    sample.tiles = io[f"{case}/pixel_values"]
    torch.testing.assert_close(all_logits(net, sample), io[f"{case}/logits"][0], atol=1e-4, rtol=0)


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether names, types and every bit agree."""
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
