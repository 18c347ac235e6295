"""Hidden states of visual tokens should tell what a pretrained vision model sees there.

n tiles, N visual tokens, D hidden size of the student, C channels of the teacher, R documents.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.auxiliary.teacher import EmbedderTeacher, Teacher, TimmTeacher
from mmframe.auxiliary import Features, by_document
from mmframe.batch import Batch
from mmframe.contracts import AuxiliaryLoss, PatchEmbedder
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.layers import parse_layers
from mmframe.registry import register
from mmframe.tile_tokens import grid_places

KINDS = {"image": TokenKind.IMAGE, "query": TokenKind.QUERY}


@register("auxiliary")
class TeacherFeatures(AuxiliaryLoss):
    """Distance of projected hidden states, at chosen layers, to the patch features of a frozen vision model.

    A head (LayerNorm, Linear) for each layer projects the student; the teacher's grid is resampled to the student's.
    EVE (arXiv 2406.11832: the patch aligning layer, to CLIP), VoRA (arXiv 2503.20680, block-wise distillation: cosine,
    block i of the teacher to layer i), BREEN (arXiv 2503.12446: learnable queries, to CLIP). Heads are dropped when
    weights are handed on; the teacher is in no checkpoint.

    Args:
        teacher: Name of a vision model in timm, e.g. ``vit_large_patch14_clip_336.openai``.
        embedder: In place of `teacher`: a patch embedder (class_path and init_args), with its weights.
        layers: Layers of the backbone whose output is looked at: all, 0-15, -1, 0-3,8-11.
        teacher_layers: Blocks of the timm model: one for all layers, or as many as `layers`, one for each.
        kind: Tokens that are looked at, ``image`` or ``query``; the queries of a tile stand for a square grid.
        distance: ``cosine`` (one minus it) or ``mse``.
        weight: Factor beside the objective.
        lr: Peak learning rate of the heads.
        pretrained: Load timm's weights (from the Hugging Face hub).
        teacher_args: Further arguments of the timm model.
    """

    toy_args = {"teacher": "test_vit", "layers": "0,-1", "pretrained": False, "teacher_args": {"img_size": 32}}

    def __init__(
        self,
        teacher: str | None = None,
        embedder: PatchEmbedder | None = None,
        layers: str = "-1",
        teacher_layers: str = "-1",
        kind: Literal["image", "query"] = "image",
        distance: Literal["cosine", "mse"] = "cosine",
        weight: float = 1.0,
        lr: float = 1e-4,
        pretrained: bool = True,
        teacher_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(weight, lr)
        if (teacher is None) == (embedder is None):
            raise UserError("TeacherFeatures: give either teacher, a model of timm, or embedder, a component")
        if kind not in KINDS or distance not in DISTANCES:
            raise UserError(f"TeacherFeatures: kind={kind!r} is image or query, distance={distance!r} cosine or mse")
        self.kind, self.distance, self.layers = KINDS[kind], DISTANCES[distance], layers
        self._timm = (teacher, teacher_layers, pretrained, teacher_args or {})
        self._embedder = (embedder,)  # in a tuple it is no sub-module: neither trained nor saved
        self.teacher: Teacher | None = None
        self.heads = nn.ModuleList()

    def install(self, net: nn.Module, processor: Any) -> None:
        backbone: Any = net.backbone
        if net.patch_embedder is None:
            raise UserError("TeacherFeatures: the model has no patch embedder, so there is nothing to teach")
        layers = parse_layers(self.layers, backbone.num_layers, "TeacherFeatures")
        with torch.random.fork_rng(devices=[]):  # a loss beside it must not change how the model starts
            torch.manual_seed(0)  # nor may a random teacher be another one when the run is continued
            teacher = self._make_teacher(processor)
            if isinstance(teacher, TimmTeacher) and len(teacher.blocks) not in (1, len(layers)):
                raise UserError(
                    f"TeacherFeatures: {len(teacher.blocks)} blocks of the teacher for {len(layers)} layers; "
                    "choose one, or one for each"
                )
            self.heads.extend(_head(backbone.hidden_size, teacher.channels) for _ in layers)
        teacher.model.requires_grad_(False).eval()
        self.teacher = teacher

    def _make_teacher(self, processor: Any) -> Teacher:
        embedder = self._embedder[0]
        if embedder is not None:
            return EmbedderTeacher(embedder)
        name, blocks, pretrained, model_args = self._timm
        assert name is not None
        return TimmTeacher(name, blocks, pretrained, model_args, processor.mean, processor.std)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the teacher too, when the module is moved."""
        if self.teacher is not None:
            self.teacher.model._apply(fn)
        return super()._apply(fn, recurse)

    def listens_to(self, net: nn.Module) -> Sequence[str]:
        return [f"backbone.layers.{n}" for n in parse_layers(self.layers, net.backbone.num_layers)]  # type: ignore

    def forward(self, net: nn.Module, batch: Batch, features: Features) -> tuple[Tensor, Tensor]:
        index_N = (batch.kinds == self.kind).nonzero().flatten()
        targets = self._targets(net.patch_embedder, batch, len(index_N))
        names = self.listens_to(net)
        loss_N = torch.zeros(len(index_N), device=batch.labels.device)
        for number, (name, head) in enumerate(zip(names, self.heads, strict=True)):
            student_NC = head(features.at(name, index_N).to(head[1].weight.dtype)).float()  # type: ignore[index]
            loss_N = loss_N + self.distance(student_NC, targets[number % len(targets)])
        return by_document(batch, index_N, loss_N / len(names))

    def _targets(self, embedder: Any, batch: Batch, num_tokens: int) -> list[Tensor]:
        """The teacher's features at the student's tokens: fp32 [N, C], of each block."""
        teacher, tiles = self.teacher, batch.tiles
        assert teacher is not None
        if not len(tiles):
            return [torch.zeros(0, teacher.channels, device=tiles.device)]
        places = self._places(embedder, *tiles.shape[2:])
        if num_tokens != len(tiles) * len(places):
            raise UserError(
                f"TeacherFeatures: {num_tokens} {self.kind.name.lower()} tokens in the batch of {batch.keys[0]!r}, but "
                f"{len(tiles)} tiles x {len(places)} have a place; the loss needs all tokens of a tile"
            )
        rows, columns = (places.amax(0) + 1).tolist()
        targets = []
        for grid in teacher.grids(tiles):
            cells = F.interpolate(grid.float(), (rows, columns), mode="bilinear", antialias=True, align_corners=False)
            targets.append(cells[:, :, places[:, 0], places[:, 1]].transpose(1, 2).flatten(0, 1))
        return targets

    def _places(self, embedder: PatchEmbedder, height: int, width: int) -> Tensor:
        """Row and column of each token of a tile that is looked at: int64 [tokens, 2]."""
        chosen = embedder.kinds(height, width) == self.kind
        if self.kind == TokenKind.IMAGE:
            return embedder.places(height, width)[chosen].long()
        side = round(int(chosen.sum()) ** 0.5)
        if not side or side * side != int(chosen.sum()):
            raise UserError(
                f"TeacherFeatures: {int(chosen.sum())} queries of a tile are no square grid; take a square number"
            )
        return grid_places(side, side).long()


def _head(hidden_size: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, channels))


def _cosine(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student_NC, teacher_NC, dim=-1)


def _mse(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    return (student_NC - teacher_NC).square().mean(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": _cosine, "mse": _mse}
