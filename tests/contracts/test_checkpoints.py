"""What every format of official checkpoints promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from mmframe.checkpoints import formats
from mmframe.convert import export_checkpoint
from mmframe.loading import build, from_pretrained
from mmframe.model import MultimodalLM
from mmframe.weights import save_weights
from tests.contracts.support import every, shapes
from tests.helpers import (
    all_logits,
    roughen,
    row,
)


def toys_in(cls: type, folder: Path) -> Iterator[tuple[MultimodalLM, Path]]:
    """Each toy model of a format with rough weights, and its weights file."""
    for number, parts in enumerate(cls.toy_models()):  # type: ignore[attr-defined]
        embedder = None if parts["patch_embedder"] is None else build(parts["patch_embedder"])
        net = MultimodalLM(build(parts["backbone"]), embedder, build(parts["router"]), expert_backend="torch").eval()
        roughen(net, seed=number)
        file = folder / str(number) / "weights.safetensors"
        save_weights(net, file, {"model": parts | {"processor": None}})
        yield net, file


@every("checkpoint")
def test_checkpoint_format_takes_its_toy_models_out_and_back(cls: type, tmp_path: Path) -> None:
    toys = list(toys_in(cls, tmp_path))
    assert toys, "toy_models() shows what the format can hold"
    for net, file in toys:
        out = file.parent / "official"
        assert type(export_checkpoint(file, out)) is cls
        back = from_pretrained(out).net
        assert shapes(back) == shapes(net)
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in back.state_dict().items())
        embedder = net.patch_embedder
        per_tile = 0 if embedder is None else embedder.num_tokens(embedder.image_size, embedder.image_size)
        sample = row("tttttttt" if embedder is None else "tt[i]tttt", per_tile=per_tile)
        assert torch.equal(all_logits(back, sample), all_logits(net, sample)), "an option did not come back"


@every("checkpoint")
def test_checkpoint_format_places_every_tensor_once(cls: type, tmp_path: Path) -> None:
    for net, _ in toys_in(cls, tmp_path):
        own, links = net.state_dict(), cls().links(net)  # type: ignore[attr-defined]
        ours = [name for link in links for name in link.ours]
        assert sorted(ours) == sorted(own) and len({link.theirs for link in links}) == len(links)
        for link in links:
            back = link.to_ours(link.to_theirs(*(own[name] for name in link.ours)))
            assert all(torch.equal(back[name], own[name]) for name in link.ours), link.theirs
        config = cls().config(net, None)  # type: ignore[attr-defined]
        assert [type(form) for form in formats() if form.recognises(config)] == [cls], "one format and no other"
