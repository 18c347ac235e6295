"""Official tensor names of the text models, and what our visual experts are called beside them.

No released model has names for attention or norm experts, so these are ours: the name of the text tensor with `_ve`
behind the module, as the released `feed_forward_ve` has it. Another expert's name takes the place of `ve`.

| site         | Llama, Qwen, Chameleon    | InternLM2                                              |
|--------------|---------------------------|--------------------------------------------------------|
| q, k, v      | self_attn.{q,k,v}_proj_ve | attention.wqkv_ve (all three), attention.w{q,k,v}_ve   |
| o            | self_attn.o_proj_ve       | attention.wo_ve                                        |
| q_norm etc.  | self_attn.{q,k}_norm_ve   |                                                        |
| attn_norm    | input_layernorm_ve        | attention_norm_ve                                      |
| ffn_norm     | post_attention_layernorm_ve | ffn_norm_ve                                          |
| ffn          | mlp_ve.{gate,up,down}_proj  | feed_forward_ve.{w1,w3,w2} (released)                |

Persimmon has the names of Llama but for self_attn.query_key_value (q, k, v), self_attn.dense (o), {q,k}_layernorm and
mlp.dense_{h_to_4h,4h_to_h}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mmframe.checkpoints import TensorLink

if TYPE_CHECKING:
    from components.backbones.decoder import Decoder

LLAMA_SITES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn": "mlp",
}
LLAMA_FFN = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
INTERNLM2_SITES = {
    "q": "attention.wq",
    "k": "attention.wk",
    "v": "attention.wv",
    "o": "attention.wo",
    "attn_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn": "feed_forward",
}
INTERNLM2_FFN = {"gate": "w1", "up": "w3", "down": "w2"}
PERSIMMON_SITES = LLAMA_SITES | {
    "o": "self_attn.dense",
    "q_norm": "self_attn.q_layernorm",
    "k_norm": "self_attn.k_layernorm",
}
PERSIMMON_FFN = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}

GEMMA_SITES = LLAMA_SITES | {"ffn_norm": "pre_feedforward_layernorm"}


def suffix(expert: str) -> str:
    """What follows the name of a module that belongs to an expert."""
    return {"text": "", "visual": "_ve"}.get(expert, f"_{expert}")


def site_links(decoder: Decoder, sites: dict[str, str], ffn: dict[str, str]) -> Iterator[TensorLink]:
    """Links of every expert at every site, one tensor to one parameter.

    Args:
        decoder: With its experts installed.
        sites: Our site -> official module.
        ffn: Our matrices of the FFN -> official ones.
    """
    for layer, site, experts in decoder.sites():
        for expert, module in experts.items():
            for name, _ in module.named_parameters():
                part, _, kind = name.rpartition(".")
                official = f"{sites[site]}{suffix(expert)}.{ffn[part] + '.' if part else ''}{kind}"
                yield TensorLink(f"model.layers.{layer}.{official}", (f"layers.{layer}.{site}.{expert}.{name}",))


def top_links(decoder: Decoder, embedding: str, norm: str, head: str) -> list[TensorLink]:
    """Embedding, final norm and, where it has weights of its own, the head."""
    links = [TensorLink(embedding, ("embedding.weight",))]
    links += [TensorLink(f"{norm}.{kind}", (f"norm.{kind}",)) for kind, _ in decoder.norm.named_parameters()]
    return links if decoder.output is None else [*links, TensorLink(head, ("output.weight",))]


def fuse_qkv(
    decoder: Decoder,
    links: list[TensorLink],
    sites: dict[str, str],
    fused: str,
    split: Callable[[Tensor], Sequence[Tensor]],
    join: Callable[..., Tensor],
) -> list[TensorLink]:
    """Puts one official tensor in place of q, k and v of each expert that has all three.

    Args:
        decoder: With its experts installed.
        links: Of all its parameters.
        sites: Our site -> official module, as in `links`.
        fused: Official module of the three together.
        split: Its weight or bias -> those of q, k and v.
        join: The inverse of `split`.
    """
    by_name = {link.theirs: link for link in links}
    for index, layer in enumerate(decoder.layers):
        for expert, projection in layer.q.items():  # type: ignore[operator, union-attr]
            for kind, _ in projection.named_parameters():
                prefix, end = f"model.layers.{index}.", f"{suffix(expert)}.{kind}"
                theirs = [f"{prefix}{sites[site]}{end}" for site in "qkv"]
                if all(name in by_name for name in theirs):
                    ours = tuple(by_name.pop(name).ours[0] for name in theirs)
                    by_name[f"{prefix}{fused}{end}"] = TensorLink(f"{prefix}{fused}{end}", ours, split, join)
    return list(by_name.values())


def llama_links(decoder: Decoder) -> list[TensorLink]:
    """The Hugging Face layout of Llama, Qwen2 and Qwen3."""
    top = top_links(decoder, "model.embed_tokens.weight", "model.norm", "lm_head.weight")
    return [*top, *site_links(decoder, LLAMA_SITES, LLAMA_FFN)]


def internlm2_links(decoder: Decoder) -> list[TensorLink]:
    """The layout of InternLM2 with its q, k and v in separate matrices."""
    top = top_links(decoder, "model.tok_embeddings.weight", "model.norm", "output.weight")
    return [*top, *site_links(decoder, INTERNLM2_SITES, INTERNLM2_FFN)]
