"""The contracts that pluggable components fulfil.

Shape suffixes, here and in every model file:
    B rows of the batch    T tokens of the batch, all rows concatenated, no padding    L longest row
    D hidden size          N visual tokens      S supervised tokens      V vocabulary
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mmframe.errors import UserError
from mmframe.kinds import TokenKind

if TYPE_CHECKING:
    from mmframe.batch import Batch
    from mmframe.cache import KVCache
    from mmframe.experts import Experts
    from mmframe.layout import Layout
    from mmframe.loading import LoadedModel
    from mmframe.plan import Plan

SITES = ("q", "k", "v", "o", "ffn", "attn_norm", "ffn_norm", "q_norm", "k_norm")
"""Names of sites. A backbone has those that its sites() yields; q_norm and k_norm only where q and k have norms."""


class Component:
    """Base of every component: remembers how it was constructed.

    ``spec`` is ``{"class_path": ..., "init_args": {...}}`` in plain data, so a checkpoint can say what it
    holds and be loaded with ``weights_only``. Arguments that are components are stored as their specs.
    """

    spec: dict[str, Any]
    toy_args: ClassVar[dict[str, Any] | None] = {}
    """Constructor arguments of a tiny instance, for tests/test_contracts.py; None: it has one size and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__.setdefault("spec", {"class_path": _path(type(self)), "init_args": {}})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        init = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording_init(self: Any, *args: Any, **kw: Any) -> None:
            if "spec" not in self.__dict__:  # the outermost class records, not its bases
                bound = signature.bind(self, *args, **kw)
                bound.apply_defaults()
                given = {k: v for k, v in list(bound.arguments.items())[1:]}
                for name, parameter in signature.parameters.items():
                    if parameter.kind is inspect.Parameter.VAR_KEYWORD:  # passed on to a base
                        given |= given.pop(name, {})
                init_args = {k: as_plain(v) for k, v in given.items()}
                self.__dict__["spec"] = {"class_path": _path(type(self)), "init_args": init_args}
            init(self, *args, **kw)

        cls.__init__ = recording_init  # type: ignore[method-assign]


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def as_plain(value: Any) -> Any:
    """Plain-data form of a constructor argument: components become their specs, tuples lists."""
    if isinstance(value, Component):
        return value.spec
    if isinstance(value, dict):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {k: as_plain(getattr(value, k)) for k in value.__dataclass_fields__}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def whole_tokens(height: int, width: int, step: int) -> int:
    """Tokens of a tile of `height` x `width` pixels where each covers `step` x `step`.

    Raises:
        UserError: a side is no multiple of `step`, or zero.
    """
    if height % step or width % step or not height or not width:
        raise UserError(
            f"patch_embedder: a tile of {height} x {width} px cannot be cut into whole tokens; "
            f"both sides must be multiples of {step} px"
        )
    return (height // step) * (width // step)


class PatchEmbedder(Component, nn.Module, ABC):
    """Pixels -> visual tokens. A full vision encoder with its projector is one too (the modular baseline)."""

    image_size: int
    """Edge of one square tile, pixels."""
    hidden_size: int

    @abstractmethod
    def num_tokens(self, height: int, width: int) -> int:
        """Visual tokens of one tile of `height` x `width` pixels, known without running the model.

        Raises:
            UserError: the size cannot be cut into whole tokens; says which multiple is needed.
        """

    @abstractmethod
    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles [n, 3, h, w], normalised -> visual tokens [N, D], tile by tile, row-major.

        An empty batch of tiles gives an empty result and zero (not missing) gradients.
        """


class Backbone(Component, nn.Module, ABC):
    """The pretrained decoder-only LLM: embedding, layers, head."""

    hidden_size: int
    num_layers: int
    vocab_size: int
    attention: str
    """Mask of the backbone: ``causal`` or ``image_bidirectional``."""

    @abstractmethod
    def embed(self, ids_T: Tensor) -> Tensor:
        """Token ids [T] -> embeddings [T, D]."""

    @abstractmethod
    def forward(self, x_TD: Tensor, plan: "Plan", layout: "Layout", cache: "KVCache | None" = None) -> Tensor:
        """Hidden states [T, D] in plan order -> the last layer's output [T, D], before the final norm."""

    @abstractmethod
    def head(self, h_SD: Tensor) -> Tensor:
        """Final norm and head: [S, D] -> logits [S, V]."""

    @abstractmethod
    def rope(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [..., head_dim] in fp32 for `positions` [...] of rows of `lengths` tokens (broadcast): a row's
        angles never depend on its neighbours in the batch."""

    @abstractmethod
    def sites(self) -> "Iterator[tuple[int, str, Experts]]":
        """Every place that can have experts: (layer index, site name, its experts)."""

    @abstractmethod
    def new_cache(self, rows: int, capacity: int) -> "KVCache":
        """An empty cache for `rows` sequences of at most `capacity` tokens."""


class ExpertRouter(Component, ABC):
    """Which sites have experts, how new ones start, and which token kind goes to which expert."""

    experts: tuple[str, ...]
    """Names; the first is the pretrained one."""

    @abstractmethod
    def plan(self, kinds_T: Tensor) -> "Plan":
        """Kinds [T] (int8, on the CPU) -> the routing of the batch, used by every layer and site."""

    @abstractmethod
    def install(self, backbone: Backbone) -> None:
        """Puts the new experts into the backbone's sites."""


@dataclass(frozen=True)
class TrainableGroup:
    """Parameters that train together.

    Args:
        match: Shell-style patterns of parameter names, e.g. ``backbone.layers.*.ffn.visual.*``.
        lr: Peak learning rate.
        weight_decay: Overrides the optimisation's weight decay; None keeps it.
    """

    match: Sequence[str]
    lr: float
    weight_decay: float | None = None


class FreezingPolicy(Component, ABC):
    """Which parameters train in a stage, at parameter level, with learning-rate groups."""

    @abstractmethod
    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        """Named groups of trainable parameters; whatever none of them matches is frozen.

        Args:
            experts: The router's expert names, so that one policy serves a model with and without visual experts.
        """


class Adapter(Component, ABC):
    """Small trainable additions to a pretrained model that can be folded into its weights."""

    @abstractmethod
    def install(self, net: nn.Module) -> None:
        """Adds the parameters, in place; at first the model computes what it computed before, to the last bit.

        The model's own parameters keep their names, so checkpoints, freezing patterns and routing do not notice.
        """

    @abstractmethod
    def merge(self, net: nn.Module) -> None:
        """Folds the additions into the model's weights and takes them out again: the plain model is left.

        A merged weight is a new tensor; the tensors that were there keep their values.
        """


class Objective(Component, ABC):
    """What a stage minimises. Has no parameters of its own."""

    @abstractmethod
    def __call__(self, net: nn.Module, batch: "Batch") -> tuple[Tensor, Tensor]:
        """Weighted sum of losses and sum of weights, fp32 scalars: sums, not a mean, so that whoever splits a
        batch over micro-batches or ranks divides once, by the total."""


class Evaluator(Component, ABC):
    """Measures a trained model: what `mmframe ablate` asks of the final weights of every run."""

    @abstractmethod
    def evaluate(self, model: "LoadedModel") -> dict[str, float]:
        """Figures by name, finite numbers; in a grid they are called `<name of the evaluator>.<key>`.

        A function of the model and the arguments alone: the same weights give the same figures, so what it draws comes
        from a seed of its own. The model is left as it was; no gradients are kept (the caller turns them off).

        Args:
            model: In eval mode, on the device where it is to be measured.
        """


def check_fp16(precision: torch.dtype | str) -> None:
    """fp16 overflows in this family of models (the authors confirm NaN): refused by name.

    Args:
        precision: Of tensors, or Lightning's word such as ``16-mixed``.
    """
    if precision == torch.float16 or str(precision).startswith("16"):
        raise UserError(
            "precision: fp16 gives NaN in this model family (activations exceed 65504); use bf16-true, bf16-mixed or 32"
        )


__all__ = [
    "SITES",
    "Adapter",
    "Backbone",
    "Component",
    "Evaluator",
    "ExpertRouter",
    "FreezingPolicy",
    "Objective",
    "PatchEmbedder",
    "TokenKind",
    "TrainableGroup",
    "whole_tokens",
]
