"""The contract of official checkpoint formats: a config becomes components, their tensors become ours, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from mmframe import registry
from mmframe.contracts import Component
from mmframe.errors import UserError

Config = dict[str, Any]
"""An official config.json."""
Parts = dict[str, Any]
"""Component specs of a model: backbone, patch_embedder, router, processor. patch_embedder is None in a text LLM,
processor where the checkpoint has no tokenizer."""


@dataclass(frozen=True)
class TensorLink:
    """One tensor of an official checkpoint and the parameters of ours that hold it.

    Args:
        theirs: Its official name.
        ours: Names of our parameters; several where the official tensor is cut up.
        split: Official tensor -> ours, in the order of `ours`; None: the one parameter is the tensor as it stands.
        join: The inverse of `split`: ours, one argument each -> the official tensor. Must run on meta tensors too.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] | None = None
    join: Callable[..., Tensor] | None = None

    def within(self, theirs: str, ours: str) -> TensorLink:
        """The same link where both sides stand under a prefix, such as ``language_model.`` and ``backbone.``."""
        return replace(self, theirs=theirs + self.theirs, ours=tuple(ours + name for name in self.ours))

    def to_ours(self, theirs: Tensor) -> dict[str, Tensor]:
        """Official tensor -> our parameters by name."""
        parts = [theirs] if self.split is None else self.split(theirs)
        return dict(zip(self.ours, parts, strict=True))

    def to_theirs(self, *ours: Tensor) -> Tensor:
        """Our parameters, in the order of `ours` -> the official tensor."""
        return ours[0] if self.join is None else self.join(*ours)


class CheckpointFormat(Component, ABC):
    """An official checkpoint layout, both ways.

    Everything the config says is honoured, or refused by the name of its key: nothing is silently dropped.
    """

    prefix: ClassVar[str] = ""
    """Of the language model's tensors, e.g. ``language_model.``."""
    defaults: ClassVar[Config] = {}
    """What a config says where neither the model nor the config that it came with does."""

    @classmethod
    @abstractmethod
    def toy_models(cls) -> list[Parts]:
        """Parts (without processor) of small models in this format: the contract tests take them out and back."""

    @abstractmethod
    def recognises(self, config: Config) -> bool:
        """Whether an official config.json is of this format."""

    @abstractmethod
    def parts(self, config: Config, folder: Path) -> Parts:
        """Component specs of the model that a config describes.

        Args:
            config: Official config.json.
            folder: Holds the tokenizer's files.

        Raises:
            UserError: a key has a value that cannot be honoured; names both.
        """

    @abstractmethod
    def config(self, net: nn.Module, processor: Any) -> Config:
        """The official config of a model of ours; `parts` of it gives the same model back.

        Args:
            net: MultimodalLM; may be on the meta device.
            processor: ChatProcessor, or None.

        Raises:
            UserError: a component, or an option of one, that the format cannot express.
        """

    def links(self, net: nn.Module) -> list[TensorLink]:
        """Official tensors <-> our parameters, each side exactly once.

        Raises:
            UserError: a component that has no official names.
        """
        links = [link.within(self.prefix, "backbone.") for link in _tensor_map(net.backbone)]
        if net.patch_embedder is not None:
            links += [link.within("", "patch_embedder.") for link in _tensor_map(net.patch_embedder)]
        return links


def _tensor_map(part: Any) -> list[TensorLink]:
    if not hasattr(part, "tensor_map"):
        raise UserError(f"export: {type(part).__name__} has no official tensor names, so it cannot be exported")
    return part.tensor_map()


def formats() -> list[CheckpointFormat]:
    """All registered formats."""
    return [cls() for cls in registry.classes("checkpoint")]


def format_of(config: Config) -> CheckpointFormat:
    """The registered format that recognises a config.

    Raises:
        UserError: none does; names the model_type and what there is.
    """
    for form in formats():
        if form.recognises(config):
            return form
    named = ", ".join(config.get("architectures") or ["no architectures"])
    known = ", ".join(type(form).__name__ for form in formats())
    raise UserError(
        f"config.json: no checkpoint format fits model_type={config.get('model_type')!r} ({named}); known: {known}"
    )


def refuse(config: Config, allowed: dict[str, Sequence[Any]], where: str = "config.json") -> None:
    """Refuses values that would change the model and that we cannot honour.

    Args:
        config: Part of an official config.
        allowed: Key -> values under which nothing changes; a missing key is always fine.
        where: Of which file or part, for the message.

    Raises:
        UserError: names the key, its value and what is supported.
    """
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            supported = " or ".join(repr(value) for value in values)
            raise UserError(f"{where}: {key}={config[key]!r} is not supported, only {supported}")
