"""Weights of a Llama GGUF file -> Decoder, dequantised to fp32."""

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from components.backbones.decoder import Decoder
from mmframe.errors import UserError

LAYER_NAMES = {
    "attn_norm": "attn_norm.text",
    "attn_q": "q.text",
    "attn_k": "k.text",
    "attn_v": "v.text",
    "attn_output": "o.text",
    "ffn_norm": "ffn_norm.text",
    "ffn_gate": "ffn.text.gate",
    "ffn_up": "ffn.text.up",
    "ffn_down": "ffn.text.down",
}
TOP_NAMES = {"token_embd": "embedding", "output_norm": "norm", "output": "output"}


def our_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``layers.3.q.text.weight``."""
    stem, _, suffix = name.rpartition(".")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{suffix}"
    _, layer, part = stem.split(".", 2)
    return f"layers.{layer}.{LAYER_NAMES[part]}.{suffix}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores q and k rows for interleaved rotary pairs; the decoder rotates halves. Rows [heads * d, D]."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def load_llama_gguf(decoder: Decoder, path: Path) -> None:
    """Fills the text experts, embedding, norms and head.

    Raises:
        UserError: a tensor of another shape than the decoder's, or one that is missing.
    """
    num_heads = decoder.hidden_size // decoder.head_dim
    parameters = dict(decoder.named_parameters())
    missing = set(parameters)
    for tensor in GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name = our_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = unpermute(weight, num_heads if ".attn_q." in tensor.name else decoder.kv_heads)
        if name not in parameters or tuple(weight.shape) != tuple(parameters[name].shape):
            have = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise UserError(f"{path.name}: {tensor.name} is {tuple(weight.shape)}, the backbone has {have}")
        with torch.no_grad():
            parameters[name].copy_(torch.tensor(weight))
        missing.discard(name)
    if missing:
        raise UserError(f"{path.name}: {len(missing)} tensors are missing, first {sorted(missing)[0]}")
