"""Rotary position embedding, plain or scaled to longer contexts.

d head_dim; the frequencies of one head are [d / 2], its angles [d].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmframe.errors import UserError, nearest

OPTIONS = {
    "none": (),
    "linear": (),
    "dynamic": (),
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "original_max_position_embeddings"),
}
"""Scalings and what each takes beside its factor; the names are those of Hugging Face configs."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Args:
        theta: Base of the frequencies.
        scaling: ``none``; ``linear`` (positions divided by `factor`); ``dynamic`` (NTK: the base grows once the context
            exceeds `max_positions`); ``llama3`` (Llama 3.1: long wavelengths divided by `factor`, short ones kept);
            ``yarn`` (arXiv 2309.00071: as llama3 with bounds counted in rotations, and cos and sin scaled).
        factor: Scaling factor.
        max_positions: Context of the model, tokens.
        low_freq_factor: llama3: wavelengths above original / this are divided by `factor`.
        high_freq_factor: llama3: wavelengths below original / this are kept.
        beta_fast: yarn: pairs with more rotations than this over the original context are kept.
        beta_slow: yarn: pairs with fewer rotations than this are divided by `factor`.
        attention_factor: yarn: of cos and sin; None is the paper's 0.1 ln(factor) + 1.
        original_max_position_embeddings: llama3, yarn: context before scaling, tokens; None is `max_positions`.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    max_positions: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    original_max_position_embeddings: float | None = None

    def __post_init__(self) -> None:
        if self.scaling not in OPTIONS:
            hint = nearest(self.scaling, OPTIONS)
            raise UserError(f"rope: scaling={self.scaling!r} is not known; {hint} use one of {', '.join(OPTIONS)}")
        if self.scaling == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                f"rope: llama3 needs low_freq_factor < high_freq_factor, not "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )

    @classmethod
    def of(
        cls, theta: float, scaling: str, factor: float, max_positions: int, options: dict[str, float] | None
    ) -> "Rope":
        """From the flat arguments of a backbone; `options` are those that `scaling` takes.

        Raises:
            UserError: an option that this scaling does not have.
        """
        for name in options or ():
            known = OPTIONS.get(scaling, ())
            if name not in known:
                raise UserError(
                    f"rope: rope_scaling={scaling} has no option {name!r}; "
                    f"{nearest(name, known)} options: {', '.join(known) or 'none'}"
                )
        return cls(theta, scaling, factor, max_positions, **(options or {}))

    def changes_with_length(self, length: int) -> bool:
        return self.scaling == "dynamic" and length > self.max_positions

    def angles(
        self, positions: Tensor, lengths: Tensor, head_dim: int, sections: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos, sin [..., head_dim] in fp32 for integer positions [...] of rows of `lengths` tokens (broadcast).

        With `sections` a position is three numbers [3, ...]: time, row, column. The first sections[0] frequencies turn
        with the time, the next with the row, the last with the column (Qwen2-VL, arXiv 2409.12191 section 2.1); where
        the three are alike, as in text, the angles are those of one number to the last bit.

        Dynamic NTK is computed afresh from the row's length:
        base' = base * (factor * length / max - (factor - 1)) ^ (d / (d - 2)).
        The released code lets its table only grow, so that a short prompt after a long one changes; ours does not.
        """
        base: float | Tensor = self.theta
        if self.scaling == "dynamic":  # a ratio of 1 up to max_positions
            ratio = self.factor * lengths.float() / self.max_positions - (self.factor - 1)
            base = base * ratio.clamp(min=1)[..., None] ** (head_dim / (head_dim - 2))
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        frequencies = self._scaled(1.0 / (base**exponents), head_dim)
        turns = positions.to(torch.float32)[..., None]
        if sections is not None:
            turns = torch.cat([axis.expand(*axis.shape[:-1], n) for axis, n in zip(turns, sections, strict=True)], -1)
        angles = turns * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        scale = self._attention_factor()
        return angles.cos() * scale, angles.sin() * scale

    def _scaled(self, frequencies: Tensor, head_dim: int) -> Tensor:
        """Frequencies [..., d / 2] with the scalings that look at single frequencies: `kept` is 1 where one stays
        as it is, 0 where it is divided by the factor."""
        original = self.original_max_position_embeddings or self.max_positions
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling == "llama3":
            turns = original * frequencies / (2 * math.pi)  # of the pair, over the original context
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        elif self.scaling == "yarn":

            def pair_with(turns: float) -> float:
                return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

            first = max(math.floor(pair_with(self.beta_fast)), 0)
            last = min(math.ceil(pair_with(self.beta_slow)), head_dim - 1)
            pair = torch.arange(head_dim // 2, dtype=torch.float32, device=frequencies.device)
            kept = 1 - (pair - first) / (last - first or 0.001)
        else:
            return frequencies
        kept = kept.clamp(0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor

    def _attention_factor(self) -> float:
        if self.scaling != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates halves (not interleaved pairs): x [..., head_dim]. Narrower angles turn the first dimensions alone."""
    turning = cos.shape[-1]
    if turning < x.shape[-1]:
        return torch.cat([rotate(x[..., :turning], cos, sin), x[..., turning:]], dim=-1)
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin
