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

import numpy as np
import torch
from torch import Tensor, nn

from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.tile_tokens import described, grid_places

if TYPE_CHECKING:
    from mmframe.auxiliary import Features
    from mmframe.batch import Batch
    from mmframe.cache import KVCache
    from mmframe.experts import Experts
    from mmframe.layout import Layout
    from mmframe.loading import LoadedModel
    from mmframe.plan import Plan

SITES = ("q", "k", "v", "o", "ffn", "attn_norm", "ffn_norm", "q_norm", "k_norm")
"""Names of sites. A backbone has those that its sites() yields; q_norm and k_norm only where q and k have norms."""
SITE_GROUPS = {"qk_norm": ("q_norm", "k_norm")}
"""Short names for several sites."""


class Component:
    """Base of every component: remembers how it was constructed.

    ``spec`` is ``{"class_path": ..., "init_args": {...}}`` in plain data, so a checkpoint can say what it
    holds and be loaded with ``weights_only``. Arguments that are components are stored as their specs.
    """

    spec: dict[str, Any]
    toy_args: ClassVar[dict[str, Any] | None] = {}
    """Constructor arguments of a tiny instance, for tests/contracts; None: it has one size and no other."""

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

    def kinds(self, height: int, width: int) -> Tensor:
        """What each token of such a tile is: int8 [num_tokens], in the order in which `forward` writes them.

        By default all are IMAGE. Row ends and class tokens are BOUNDARY, learnable queries QUERY.
        """
        return torch.full((self.num_tokens(height, width),), TokenKind.IMAGE, dtype=torch.int8, device="cpu")

    def places(self, height: int, width: int) -> Tensor:
        """Row and column of each token in its tile's grid: int32 [num_tokens, 2], in the order of `forward`.

        A row end has its row and the column after the last; what has no place (queries, class tokens) has (-1, -1).
        By default a plain grid of square cells, row by row.
        """
        count = self.num_tokens(height, width)
        rows = round((count * height / width) ** 0.5)
        assert rows and rows * (count // rows) == count and rows * width == count // rows * height, (
            f"{type(self).__name__}: {count} tokens are no grid of square cells; say their places"
        )
        return grid_places(rows, count // rows)

    def tile_tokens(self, height: int, width: int) -> np.ndarray:
        """Kind, row and column of each token of such a tile: int32 [3, num_tokens]. Remembered: rows are made of it."""
        known: dict[tuple[int, int], np.ndarray] = vars(self).setdefault("_tile_tokens", {})
        if (height, width) not in known:
            known[height, width] = described(self.kinds(height, width), self.places(height, width))
        return known[height, width]

    @abstractmethod
    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles [n, 3, h, w], normalised -> visual tokens [N, D], tile by tile, as `kinds` and `places` say.

        An empty batch of tiles gives an empty result and zero (not missing) gradients.
        """


class Backbone(Component, nn.Module, ABC):
    """The pretrained decoder-only LLM: embedding, layers, head."""

    hidden_size: int
    num_layers: int
    vocab_size: int
    attention: str = "causal"
    """Who sees whom, see mmframe.geometry.may_attend."""
    window: int | None = None
    """Where it has local layers: the tokens that these see, with the token itself. Then `attention` is theirs, and
    other layers are causal."""
    positions: str = "linear"
    """Where tokens stand: ``linear`` as the data number them, or as mmframe.geometry.rotary_positions has it."""

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
        """cos and sin [..., angles] in fp32, head_dim of them or what the layers make use of, for `positions` [...] (of
        a grid [3, ...]) of rows of `lengths` tokens (broadcast): a row's angles never depend on its neighbours in the
        batch."""

    @abstractmethod
    def sites(self) -> "Iterator[tuple[int, str, Experts]]":
        """Every place that can have experts: (layer index, site name, its experts)."""

    def stack(self) -> list[nn.Module]:
        """All layers in the order in which they run: what is computed again, and sharded, one by one."""
        return [*getattr(self, "pre_layers", ()), *getattr(self, "layers", ())]

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
        layers: Layers of the backbone that the patterns may hit: ``all``, ``0-11``, ``-4--1``, ``0-3,8-11``. Names
            outside of the layers (patch embedder, head) are not concerned.
    """

    match: Sequence[str]
    lr: float
    weight_decay: float | None = None
    layers: str = "all"


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

    whole_model: ClassVar[bool] = True
    """It calls the model as a whole. One that calls parts of it cannot be trained with a sharded model, whose weights
    are there only inside of such a call."""

    per_token: tuple[Tensor, Tensor] | None = None
    """Of the last call, without gradients: loss and weight of each supervised token, fp32 [S]; for the logs alone."""

    @abstractmethod
    def __call__(self, net: nn.Module, batch: "Batch") -> tuple[Tensor, Tensor]:
        """Weighted sum of losses and sum of weights, fp32 scalars: sums, not a mean, so that whoever splits a
        batch over micro-batches or ranks divides once, by the total."""

    def weights(self, batch: "Batch") -> Tensor:
        """Weight of each supervised token, fp32 [S]; their sum is the second of what a call returns."""
        return torch.ones_like(batch.supervised, dtype=torch.float32)


class AuxiliaryLoss(Component, nn.Module, ABC):
    """A further loss beside the objective, made of what the model computes in the objective's forward.

    It may have parameters of its own (heads). They train with `lr`, are in the Trainer's checkpoints, and never in
    weights.safetensors: the model does not know of them.

    Args:
        weight: Factor of the loss beside the objective.
        lr: Peak learning rate of its own parameters; None where it has none.
    """

    facts: dict[str, Tensor]
    """Numbers of the last call that are worth logging beside the loss."""

    def __init__(self, weight: float, lr: float | None = None) -> None:
        super().__init__()
        if weight < 0:
            raise UserError(f"{type(self).__name__}: weight={weight} must not be negative")
        self.weight, self.lr, self.facts = weight, lr, {}

    def install(self, net: nn.Module, processor: Any) -> None:
        """Makes what depends on the model's sizes. Called once, before training.

        Args:
            net: MultimodalLM; is not changed.
            processor: ChatProcessor, which knows how pixels were normalised.

        Raises:
            UserError: the model lacks what the loss looks at.
        """

    @abstractmethod
    def listens_to(self, net: nn.Module) -> Sequence[str]:
        """Names of the modules whose outputs it looks at, e.g. ``backbone.layers.3``."""

    @abstractmethod
    def forward(self, net: nn.Module, batch: "Batch", features: "Features") -> tuple[Tensor, Tensor]:
        """Of each document of the batch: sum of losses, fp32 [R], and tokens looked at, int64 [R] on the host.

        A loss never mixes documents, so that packing and splits into micro-batches and ranks do not matter. Documents
        that it does not look at (without images) have zero of both, and where none has any, gradients are zero, not
        missing. See mmframe.auxiliary.by_document.
        """


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

    @abstractmethod
    def metrics(self) -> Sequence[str]:
        """Keys that `evaluate` may give, known without a model: a grid that wants another is refused before it trains.
        A key that the data turns out to have no items for may be missing from what it gives."""

    @abstractmethod
    def files(self) -> Sequence[str]:
        """The data that it measures on: paths and URLs, all there. Runs that were measured on files of other content
        are not compared.

        Raises:
            UserError: a file is missing.
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
    "SITE_GROUPS",
    "Adapter",
    "AuxiliaryLoss",
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
