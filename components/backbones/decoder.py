"""One readable decoder for the Llama family: RMSNorm, rotary attention with grouped keys, SwiGLU.

InternLM2, Llama, SmolLM2, Qwen2 and Qwen3 differ in sizes, biases, norms of q and k, rotary scaling and checkpoint
layout only. Persimmon, Chameleon and Gemma have other norms and FFNs, or stand in another order: a DecoderLayer of
their own, in their own files.

B rows, L longest row, K columns of keys, T tokens in plan order, D hidden, F intermediate, H heads, d head_dim,
V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.backbones.geometry_options import check_pre_layers, check_sections, silence
from components.backbones.hf_config import llama_config
from components.backbones.official_names import llama_links
from components.backbones.rope import Rope, rotate
from mmframe.cache import KVCache
from mmframe.checkpoints import TensorLink
from mmframe.contracts import SITES, Backbone, check_fp16
from mmframe.errors import UserError
from mmframe.experts import Experts
from mmframe.geometry import ATTENTION, POSITIONS, check_option, facts_of
from mmframe.layout import Layout
from mmframe.plan import Plan
from mmframe.planned_device import device_type


def attend(q_BHLd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """SDPA of torch with grouped keys; causal where there is no mask. `scale` of the scores: None is 1 / sqrt d.

    Training on a CPU takes the plain formula instead: there the fused kernel's backward is slow on many short rows, and
    torch's own plain path computes bf16 in fp32, which together is 12 ms a layer of the demo against 4 ms. So does a
    batch without tokens, of which the fused kernels need not make sense.
    """
    if device_type(q_BHLd) == "cpu" and torch.is_grad_enabled() or not q_BHLd.numel():
        return _attend_plainly(q_BHLd, k_BHKd, v_BHKd, mask, scale)
    B, H, L, d = q_BHLd.shape
    G = k_BHKd.shape[1]
    if (
        L == 1 and mask is not None
    ):  # decoding: queries that share a key head are rows of one product, nothing is repeated
        q_BGRd = q_BHLd.reshape(B, G, -1, d)
        return F.scaled_dot_product_attention(q_BGRd, k_BHKd, v_BHKd, mask, scale=scale).view(B, H, 1, -1)
    return F.scaled_dot_product_attention(
        q_BHLd, k_BHKd, v_BHKd, mask, is_causal=mask is None, scale=scale, enable_gqa=H != G
    )


def _attend_plainly(q_BHLd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """softmax(q k^T / sqrt d) v, softmax in fp32; the queries that share a key head are rows of one product."""
    B, H, L, d = q_BHLd.shape
    G, K = k_BHKd.shape[1:3]
    if mask is None:
        mask = torch.ones(L, K, dtype=torch.bool, device=q_BHLd.device).tril()
    hidden = torch.zeros_like(mask, dtype=q_BHLd.dtype).masked_fill(~mask, torch.finfo(q_BHLd.dtype).min)
    hidden = hidden.expand(B, H // G, L, K).reshape(B, 1, H // G * L, K)
    scores = q_BHLd.reshape(B * G, H // G * L, d) @ k_BHKd.reshape(B * G, K, d).transpose(1, 2)
    scores = torch.add(hidden, scores.view(B, G, H // G * L, K), alpha=d**-0.5 if scale is None else scale)
    weights = scores.softmax(-1, dtype=torch.float32).to(q_BHLd.dtype)
    v = v_BHKd.reshape(B * G, K, v_BHKd.shape[-1])
    return (weights.view(B * G, H // G * L, K) @ v).view(B, H, L, v.shape[-1])


class _Normalise(torch.autograd.Function):
    """x / rms(x), computed in fp32 and cast back; the backward by hand does half the passes of the recorded one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        y = (wide * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        wide, grad = y.float(), grads[0].float()
        along = torch.linalg.vecdot(grad, wide).unsqueeze(-1) / y.shape[-1]
        return ((grad - wide * along) * scale).to(y.dtype), None


class RMSNorm(nn.Module):
    """RMSNorm computed in fp32, cast back, then scaled: the order of the pretrained models."""

    fused_as = "rms_norm"

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            y: Tensor = _Normalise.apply(x, self.eps)  # type: ignore[assignment]
        else:  # the same numbers in fewer calls, which is what a decoding step waits for
            y = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        return y * self.weight


class FFN(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    fused_as = "swiglu"

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_TD)) * self.up(x_TD))


class DecoderLayer(nn.Module):
    """x += o(attention(q, k, v)); x += ffn(x): seven sites, nine with norms of q and k, each an Experts.

    Subclasses say which norms and which FFN they have, or stand them in another order.
    """

    norm_class: ClassVar[type[nn.Module]] = RMSNorm
    ffn_class: ClassVar[type[nn.Module]] = FFN
    scale: float | None = None
    """Of the scores; None is 1 / sqrt(head_dim)."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        kv_heads: int,
        head_dim: int,
        qkv_bias: bool,
        o_bias: bool,
        qk_norm: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.kv_heads, self.head_dim, self.key_dim = kv_heads, head_dim, head_dim
        q_size, kv_size = num_heads * head_dim, kv_heads * head_dim
        self.attn_norm = Experts(self.norm_class(hidden_size, eps))
        self.q = Experts(nn.Linear(hidden_size, q_size, bias=qkv_bias))
        self.k = Experts(nn.Linear(hidden_size, kv_size, bias=qkv_bias))
        self.v = Experts(nn.Linear(hidden_size, kv_size, bias=qkv_bias))
        self.q_norm = Experts(self.head_norm(num_heads, head_dim, eps)) if qk_norm else None
        self.k_norm = Experts(self.head_norm(kv_heads, head_dim, eps)) if qk_norm else None
        self.o = Experts(nn.Linear(q_size, hidden_size, bias=o_bias))
        self.ffn_norm = Experts(self.norm_class(hidden_size, eps))
        self.ffn = Experts(self.ffn_class(hidden_size, intermediate_size))

    def head_norm(self, heads: int, head_dim: int, eps: float) -> nn.Module:
        """Norm of q or of k [T, heads, head_dim]; every head has the same weights here."""
        return self.norm_class(head_dim, eps)

    def forward(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None, index: int) -> Tensor:
        delta_TD = self.attention(self.attn_norm(x_TD, plan), plan, layout, cache, index)
        return self.ffn.backend.residual_ffn(x_TD, delta_TD, self.ffn_norm, self.ffn, plan)

    def attention(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None, index: int) -> Tensor:
        q, k, v = self.heads(x_TD, plan)
        q = rotate(q, layout.cos, layout.sin)
        if cache is None:
            keys, values = layout.grid(rotate(k, layout.cos, layout.sin)), layout.grid(v)
        elif layout.key_cos is not None and layout.key_sin is not None:
            k, v = cache.write(index, k, v, layout)
            keys, values = [rotate(k, layout.key_cos, layout.key_sin)], [v]
        else:
            k, v = cache.write(index, rotate(k, layout.cos, layout.sin), v, layout)
            keys, values = [k], [v]
        y = [
            attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), group.mask, self.scale).transpose(1, 2)
            for group, q, k, v in zip(layout.groups, layout.grid(q), keys, values, strict=True)
        ]
        return self.o(layout.ungrid(y).flatten(1), plan)

    def heads(self, x_TD: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [T, heads, head_dim] before the rotation, with their norms."""
        q, k, v = (site(x_TD, plan).unflatten(-1, (-1, self.head_dim)) for site in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, plan), self.k_norm(k, plan)
        return q, k, v


class Decoder(Backbone):
    """Decoder-only LLM of the Llama family, or of another one with a `layer_class` of its own.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads.
        kv_heads: Key-value heads; divides num_heads.
        intermediate_size: F of the SwiGLU.
        vocab_size: V.
        rope: Rotary embedding.
        head_dim: Size of a head; None is hidden_size / num_heads.
        norm_eps: eps of every RMSNorm.
        tied_head: The head shares the embedding's weights.
        qkv_bias: q, k and v have biases.
        o_bias: o has a bias.
        qk_norm: RMSNorm over each head of q and k, before the rotation: the sites q_norm and k_norm.
        attention: ``causal``, ``image_bidirectional`` (slots of one image see one another) or ``prefix`` (all of the
            prompt in front of the first answer sees all of it; text alone too, so its logits are no longer those of
            the base LLM).
        positions: ``linear`` (one a token), ``shared`` (one an image) or ``grid`` (time, row and column of a slot, see
            mmframe.geometry.rotary_positions): text without images turns the same under these three; or ``native``
            (NEO's further dimensions of q and k for row and column, see components/backbones/native.py).
        grid_sections: How many of the rotary frequencies turn with time, row and column; null: a quarter, and the rest
            in halves, as in Qwen2-VL. SAIL has 0, 32, 32.
        pre_layers: New layers of the same shape in front of the pretrained ones, for text and image alike, without
            sites for experts (HoVLE, arXiv 2412.16158: 8; NEO, arXiv 2510.14979: 12 and 6).
        pre_layers_init: ``identity`` (o and down are zero: the model computes what it did before) or ``random``.
        rotary_dim: Dimensions of a head that are rotated, the first ones; None: all.
        layer_class: Norms, FFN and order of a layer; the final norm is its norm too.
        single_layers: Layer index -> arguments of its layer that differ from those of the others.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    """`model_type` of the Hugging Face configs that from_hf_config reads."""
    official_attention: ClassVar[tuple[str, ...]] = ("causal",)
    """Masks that an official config can say."""

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        kv_heads: int,
        intermediate_size: int,
        vocab_size: int,
        rope: Rope,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        tied_head: bool = False,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: bool = False,
        attention: str = "causal",
        positions: str = "linear",
        grid_sections: Sequence[int] | None = None,
        pre_layers: int = 0,
        pre_layers_init: str = "identity",
        rotary_dim: int | None = None,
        layer_class: type[DecoderLayer] = DecoderLayer,
        single_layers: Mapping[int, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if num_heads % kv_heads or (head_dim is None and hidden_size % num_heads):
            raise UserError(
                f"backbone: hidden_size {hidden_size} must divide into {num_heads} heads (or give head_dim), "
                f"and num_heads {num_heads} into {kv_heads} kv_heads"
            )
        self.hidden_size, self.num_layers, self.vocab_size = hidden_size, num_layers, vocab_size
        self.num_heads, self.kv_heads = num_heads, kv_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.rotary_dim = self.head_dim if rotary_dim is None else rotary_dim
        if self.head_dim % 2:
            raise UserError(f"backbone: heads of {self.head_dim} cannot be rotated in halves; head_dim must be even")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise UserError(f"backbone: {self.rotary_dim} of {self.head_dim} dimensions cannot be rotated in halves")
        self.attention = check_option("attention", attention, ATTENTION)
        self.positions = check_option("positions", positions, POSITIONS)
        self.rotary = rope
        self.sections = check_sections(grid_sections, self.rotary_dim // 2) if positions == "grid" else None
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        sizes: dict[str, Any] = dict(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_heads=num_heads,
            kv_heads=kv_heads,
            head_dim=self.head_dim,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            qk_norm=qk_norm,
            eps=norm_eps,
        )
        if positions == "native":
            from components.backbones.native import NativeLayer  # here: it imports this file

            if layer_class is not DecoderLayer or self.rotary_dim != self.head_dim:
                raise UserError(f"backbone: {type(self).__name__} has no positions=native; the Llama family has")
            layer_class = NativeLayer
        changes = single_layers or {}
        self.layers = nn.ModuleList(layer_class(**sizes | changes.get(index, {})) for index in range(num_layers))
        in_front = check_pre_layers(pre_layers, pre_layers_init)
        self.pre_layers = nn.ModuleList(layer_class(**sizes) for _ in range(in_front))
        self.norm = layer_class.norm_class(hidden_size, norm_eps)
        self.output = None if tied_head else nn.Linear(hidden_size, vocab_size, bias=False)
        self._initialise(std=0.02)
        if pre_layers_init == "identity":
            silence(self.pre_layers, (".o.", ".down."))
        silence(self, (".k_hw.",))

    def _initialise(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.device.type != "meta":
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments for a Hugging Face config.json of one of `model_types`.

        Raises:
            UserError: a key that is missing, or whose value cannot be honoured; names it.
        """
        raise UserError(f"backbone: {cls.__name__} has one size and reads no config.json; import it as Llama")

    def hf_config(self) -> dict[str, Any]:
        """The official config.json of this model, read off its modules; from_hf_config of it gives the model back.

        Raises:
            UserError: it has none.
        """
        bias = self.layers[0].q["text"].bias is not None  # type: ignore[index, union-attr]
        return llama_config(self, "llama", "LlamaForCausalLM") | {"attention_bias": bias}

    def tensor_map(self) -> list[TensorLink]:
        """Official tensors (without a prefix such as ``language_model.``) <-> our parameters, for the experts that
        are installed now."""
        return llama_links(self)

    def embed(self, ids_T: Tensor) -> Tensor:
        return self.embedding(ids_T)

    def rope(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.positions == "native":
            from components.backbones.native import native_angles

            return native_angles(self.rotary, positions, lengths, self.head_dim)
        return self.rotary.angles(positions, lengths, self.rotary_dim, self.sections)

    def forward(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None = None) -> Tensor:
        check_fp16(x_TD.dtype)
        for index, layer in enumerate((*self.pre_layers, *self.layers)):
            x_TD = layer(x_TD, plan, layout, cache, index)
        return x_TD

    def head(self, h_SD: Tensor) -> Tensor:
        h_SD = self.norm(h_SD)
        return F.linear(h_SD, self.embedding.weight) if self.output is None else self.output(h_SD)

    def sites(self) -> Iterator[tuple[int, str, Experts]]:
        for index, layer in enumerate(self.layers):
            for site in SITES:
                experts = getattr(layer, site)
                if experts is not None:
                    yield index, site, experts

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        weight = self.embedding.weight
        return KVCache(
            [(layer.kv_heads, layer.key_dim, layer.head_dim) for layer in (*self.pre_layers, *self.layers)],  # type: ignore
            rows,
            capacity,
            dtype=weight.dtype,
            device=weight.device,
            raw_keys=self.rotary.changes_with_length(capacity),
            facts=facts_of(self),
            turning=self.positions,
        )
