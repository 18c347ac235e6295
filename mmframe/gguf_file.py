"""A GGUF file of a Llama model, read as the official folder it was made from: HF config, HF tensor names, fp32."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor

from mmframe.errors import UserError
from mmframe.official import Official
from mmframe.paths import cache_dir
from mmframe.processing.gguf_tokenizer import tokenizer_config_from_gguf, tokenizer_json_from_gguf
from mmframe.safetensors_file import Entry, replacing

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def official_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``; unknown names stay as they are."""
    stem, _, suffix = name.rpartition(".")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{suffix}"
    head, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}" if head == "blk" and part in LAYER_NAMES else name


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores q and k rows for interleaved rotary pairs; the decoder rotates halves. Rows [heads * d, ...]."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


class GgufFile(Official):
    """The file's metadata as a Llama config; tensors are dequantised to fp32 one by one.

    Args:
        path: The file.

    Raises:
        UserError: damaged, of another architecture, or with a rotary scaling that the file only hints at.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        try:
            self.reader = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise UserError(f"{path} is damaged or no GGUF file: {error}; fetch it again") from error
        self.tensors = {official_name(tensor.name): tensor for tensor in self.reader.tensors}
        self.entries = {
            name: Entry(torch.float32, tuple(int(size) for size in reversed(tensor.shape)))
            for name, tensor in self.tensors.items()
        }
        self.config = self._config()

    def field(self, name: str, default: Any = None) -> Any:
        field = self.reader.fields.get(name)
        return default if field is None else field.contents()

    def _config(self) -> dict[str, Any]:
        architecture = self.field("general.architecture")
        if architecture != "llama":
            raise UserError(f"{self.path}: general.architecture is {architecture!r}; of GGUF files only llama is read")
        if "rope_freqs.weight" in self.tensors:
            raise UserError(f"{self.path}: rope_freqs (rotary scaling of Llama 3.1) is not read; import the HF folder")
        sizes = {
            "hidden_size": "embedding_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "intermediate_size": "feed_forward_length",
            "max_position_embeddings": "context_length",
            "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        }
        missing = [key for key in sizes.values() if f"llama.{key}" not in self.reader.fields]
        if missing or "model.embed_tokens.weight" not in self.entries:
            raise UserError(f"{self.path}: lacks llama.{missing[0]}" if missing else f"{self.path}: has no token_embd")
        config = {key: self.field(f"llama.{name}") for key, name in sizes.items()}
        scaling = self.field("llama.rope.scaling.type", "none")
        heads = config["num_attention_heads"]
        return config | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": self.entries["model.embed_tokens.weight"].shape[0],
            "num_key_value_heads": self.field("llama.attention.head_count_kv", heads),
            "head_dim": self.field("llama.attention.key_length", config["hidden_size"] // heads),
            "rope_theta": self.field("llama.rope.freq_base", 10000.0),
            "rope_scaling": None
            if scaling == "none"
            else {"rope_type": scaling, "factor": self.field("llama.rope.scaling.factor", 1.0)},
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.entries,
            "mlp_bias": False,
            "tie_word_embeddings": "lm_head.weight" not in self.entries,
        }

    def read(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        weight = dequantize(tensor.data, tensor.tensor_type)
        if ".q_proj." in name or ".k_proj." in name:
            weight = unpermute(weight, self.config["num_attention_heads" if ".q_" in name else "num_key_value_heads"])
        return torch.tensor(weight, dtype=torch.float32)

    @functools.cached_property
    def folder(self) -> Path:  # type: ignore[override]
        """The tokenizer's files as an official folder has them, made from the metadata into the cache; none where the
        vocabulary is of a family that we do not read."""
        folder = cache_dir() / "gguf" / f"{self.path.stem}-{self.path.stat().st_size}"
        try:
            vocabulary, described = tokenizer_json_from_gguf(self.path), tokenizer_config_from_gguf(self.path)
        except UserError:
            return folder
        described = json.loads(described) | {"chat_template": self.field("tokenizer.chat_template", "")}
        for name, text in (("tokenizer.json", vocabulary), ("tokenizer_config.json", json.dumps(described))):
            with replacing(folder / name) as file:
                file.write(text.encode())
        return folder
