"""Frozen vision models whose features a student is taught: any of timm, or a patch embedder of ours.

n tiles, C channels, h x w cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.contracts import PatchEmbedder
from mmframe.errors import UserError, nearest
from mmframe.kinds import TokenKind
from mmframe.layers import parse_layers


class Teacher(ABC):
    """Tiles -> feature grids. Holds its model outside of any module tree: it is never trained, counted or saved.

    Attributes:
        model: The frozen vision model.
        channels: Of the features, C.
    """

    model: nn.Module
    channels: int

    @abstractmethod
    def grids(self, tiles: Tensor) -> list[Tensor]:
        """Tiles as the student gets them [n, 3, H, W] -> [n, C, h, w] of each block asked for."""

    def _prepared(self, tiles: Tensor, size: Sequence[int]) -> Tensor:
        """Pixels at the size that the model takes, in its dtype."""
        dtype = next(self.model.parameters()).dtype
        if tuple(tiles.shape[2:]) != tuple(size):
            tiles = F.interpolate(tiles.float(), tuple(size), mode="bicubic", antialias=True, align_corners=False)
        return tiles.to(dtype)


class TimmTeacher(Teacher):
    """A vision model of timm.

    Args:
        name: With or without the tag of its weights.
        blocks: Which blocks' features, as layers are selected; timm's final norm is applied to each.
        pretrained: Load timm's weights.
        model_args: Further arguments of timm's model.
        mean: Of the student's pixels, per channel; they are taken back to the teacher's own normalisation.
        std: Of the student's pixels, per channel.

    Raises:
        UserError: no model of this name, or one whose blocks differ in their channels.
    """

    def __init__(
        self,
        name: str,
        blocks: str,
        pretrained: bool,
        model_args: dict[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if name.partition(".")[0] not in (known := timm.list_models()):
            raise UserError(f"TeacherFeatures: timm has no model {name!r}; {nearest(name, known)}")
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **model_args)
        self.model = model
        channels = [info["num_chs"] for info in model.feature_info]
        self.blocks = list(parse_layers(blocks, len(channels), "TeacherFeatures: teacher"))
        if len({channels[block] for block in self.blocks}) > 1:
            raise UserError(f"TeacherFeatures: blocks {blocks} of {name} differ in channels; take one of them")
        self.channels = channels[self.blocks[0]]
        given = timm.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
        patches = getattr(model, "patch_embed", None)
        self.size = getattr(patches, "img_size", None) or given["input_size"][1:]
        to = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std, given["mean"], given["std"]))
        self.mean, self.std, self.own_mean, self.own_std = to

    @torch.no_grad()
    def grids(self, tiles: Tensor) -> list[Tensor]:
        mean, std, own_mean, own_std = (t.to(tiles.device) for t in (self.mean, self.std, self.own_mean, self.own_std))
        pixels = self._prepared((tiles.float() * std + mean - own_mean) / own_std, self.size)
        model: Any = self.model
        return model.forward_intermediates(
            pixels, indices=self.blocks, norm=True, output_fmt="NCHW", intermediates_only=True
        )


class EmbedderTeacher(Teacher):
    """A patch embedder of ours: one grid, of its image tokens.

    Args:
        embedder: With its weights.
    """

    def __init__(self, embedder: PatchEmbedder) -> None:
        self.model, self.channels = embedder, embedder.hidden_size

    @torch.no_grad()
    def grids(self, tiles: Tensor) -> list[Tensor]:
        embedder: Any = self.model
        size = (embedder.image_size, embedder.image_size)
        tokens = embedder(self._prepared(tiles, size)).unflatten(0, (len(tiles), -1))
        is_image = (embedder.kinds(*size) == TokenKind.IMAGE).to(tiles.device)
        places = embedder.places(*size).to(tiles.device)[is_image].long()
        rows, columns = (places.amax(0) + 1).tolist()
        grid = tokens.new_zeros(len(tiles), rows, columns, self.channels)
        grid[:, places[:, 0], places[:, 1]] = tokens[:, is_image]
        return [grid.permute(0, 3, 1, 2)]
