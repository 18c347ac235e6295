"""Official checkpoints -> ours and back, tensor by tensor: a model larger than half the memory can be converted."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmframe.checkpoints import CheckpointFormat, Config, TensorLink, format_of, formats
from mmframe.contracts import check_fp16
from mmframe.errors import UserError
from mmframe.freezing import component_of
from mmframe.image_tokens import with_image_tokens
from mmframe.loading import StoredModel, build, empty_model, open_model, resolve_paths, weights_file
from mmframe.official import INDEX, PIXELS, Official, open_official, read_json
from mmframe.safetensors_file import write_safetensors
from mmframe.tokenizer_files import copy_text_files
from mmframe.weights import check_fit, in_dtype

SHARD_BYTES = 5_000_000_000


class Import:
    """An official checkpoint, understood and checked by its names and shapes; its tensors are yet to be read.

    Args:
        source: The checkpoint.
        dtype: Of floating-point parameters; None keeps each as stored.

    Raises:
        UserError: no format fits, a config value cannot be honoured, or tensors are missing, unexpected or mis-shaped.
    """

    def __init__(self, source: Official, dtype: torch.dtype | None = None) -> None:
        check_fp16(dtype or torch.float32)
        self.source, self.dtype = source, dtype
        self.format = format_of(source.config)
        self.parts = self.format.parts(source.config, source.folder)
        net = empty_model(self.parts)
        own = net.state_dict()
        self.links = {link.theirs: link for link in self.format.links(net)}
        expected = {name: link.to_theirs(*(own[ours] for ours in link.ours)) for name, link in self.links.items()}
        given = {name: entry for name, entry in source.entries.items() if not name.endswith("rotary_emb.inv_freq")}
        for name in set(given) - set(expected):
            if (
                name.endswith("lm_head.weight") and getattr(net.backbone, "output", True) is None
            ):  # a stored copy of a tied head
                self._check_tied(name)
                del given[name]

        def component(name: str) -> str:
            return component_of(self.links[name].ours[0] if name in self.links else name)

        check_fit(expected, given, set(), f"{source.name}: tensors do not fit its config.json", component)
        self.entries = {}
        for name, link in self.links.items():
            stored = source.entries[name].dtype
            kept = dtype if dtype is not None and stored.is_floating_point else stored
            self.entries |= {ours: (kept, tuple(own[ours].shape)) for ours in link.ours}

    def _check_tied(self, head: str) -> None:
        embedding = next(name for name, link in self.links.items() if link.ours == ("backbone.embedding.weight",))
        if embedding in self.source.entries and not torch.equal(self.source.read(head), self.source.read(embedding)):
            raise UserError(f"{self.source.name}: tie_word_embeddings is true, but {head} differs from {embedding}")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Our (name, tensor), one official tensor at a time.

        Raises:
            UserError: a tensor holds NaN or infinity; names it.
        """
        for name, link in self.links.items():
            theirs = self.source.read(name)
            if theirs.is_floating_point() and theirs.element_size() > 1:
                pieces = theirs.reshape(-1).split(1 << 22)  # the check itself takes a multiple of what it looks at
                bad = theirs.numel() - sum(int(torch.isfinite(piece).sum()) for piece in pieces)
                if bad:
                    raise UserError(
                        f"{self.source.name}: {name} holds {bad:,} values that are NaN or infinite (of "
                        f"{theirs.numel():,}); the checkpoint is damaged or was trained into NaN"
                    )
            for ours, tensor in link.to_ours(theirs).items():
                yield ours, in_dtype(tensor, self.dtype)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a weights file of ours says of the model."""
        origin = {"format": type(self.format).__name__, "config": self.source.config}
        return {"model": self.parts, "source": origin}


def import_checkpoint(
    source: str | Path,
    target: Path,
    dtype: torch.dtype | None = None,
    image_tokens: bool = False,
    trust_pickle: bool = False,
    force: bool = False,
) -> Import:
    """Writes an official checkpoint as a folder of ours: weights.safetensors and the tokenizer's files.

    Args:
        source: Official folder, GGUF file or hub id.
        target: The new folder; it appears when it is complete.
        dtype: Of the parameters; None keeps the stored one.
        image_tokens: Give a text LLM the nine tokens that InternVL adds, see mmframe.image_tokens.
        trust_pickle: Also read .bin and .pth files.
        force: Write into a folder that is not empty.

    Raises:
        UserError: the source is damaged or not understood, or the target is in use. Nothing is written then.
    """
    check_target(target, force)
    official = open_official(source, trust_pickle)
    made = Import(official, dtype)
    with new_folder(target, force) as folder:
        copy_text_files(official.folder, folder)
        processor = made.parts["processor"]
        if processor is not None:
            processor["init_args"]["tokenizer"]["init_args"]["path"] = "."  # the folder of the weights file
        tensors = with_image_tokens(made, folder) if image_tokens else made.tensors()
        _check_processor(build(resolve_paths(processor, folder)), made)
        info = {key: json.dumps(value) for key, value in made.metadata.items()}
        write_safetensors(folder / "weights.safetensors", made.entries, tensors, info)
    return made


def _check_processor(processor: Any, made: Import) -> None:
    """A tokenizer that cannot be read, or does not belong to the weights, is told now."""
    rows = made.parts["backbone"]["init_args"]["vocab_size"]
    if processor is not None and processor.tokenizer.vocab_size > rows:
        raise UserError(
            f"{made.source.name}: the tokenizer has {processor.tokenizer.vocab_size:,} tokens, the embedding {rows:,} "
            "rows; take the tokenizer of this checkpoint"
        )


def export_checkpoint(
    source: str | Path,
    target: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
) -> CheckpointFormat:
    """Writes a model of ours in its official layout: config.json, safetensors shards with index, tokenizer's files.

    Args:
        source: Run directory of a stage, or weights file.
        target: The new folder; it appears when it is complete.
        dtype: Of floating-point tensors; None keeps the stored one, to the last bit.
        shard_bytes: Largest shard; a tensor is never cut.
        force: Write into a folder that is not empty.

    Raises:
        UserError: a component that no official layout can express, or the target is in use. Nothing is written then.
    """
    check_fp16(dtype or torch.float32)
    check_target(target, force)
    stored = open_model(source)
    origin = stored.metadata.get("source") or {}
    form, config = official_config(stored, origin)
    links = form.links(stored.net)
    own = stored.net.state_dict()
    placed = [name for link in links for name in link.ours]
    assert len(placed) == len(set(placed)), "a parameter has two official names"
    if lost := sorted(set(own) - set(placed)):
        raise UserError(
            f"export: {len(lost)} tensors of {component_of(lost[0])} have no official name, first {lost[0]}; "
            f"{type(form).__name__} cannot express this model"
        )
    entries: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for link in links:
        kept = stored.entries[link.ours[0]].dtype
        kept = dtype if dtype is not None and kept.is_floating_point else kept
        entries[link.theirs] = (kept, tuple(link.to_theirs(*(own[name] for name in link.ours)).shape))
    config["dtype" if "dtype" in config else "torch_dtype"] = str(entries[links[0].theirs][0]).removeprefix("torch.")

    def tensors(some: Iterable[TensorLink]) -> Iterator[tuple[str, Tensor]]:
        for link in some:
            yield link.theirs, in_dtype(link.to_theirs(*(stored.read(name) for name in link.ours)), dtype)

    with new_folder(target, force) as folder:
        shards = _shards(links, entries, shard_bytes)
        weight_map = {}
        for file, some in shards.items():
            write_safetensors(folder / file, {link.theirs: entries[link.theirs] for link in some}, tensors(some))
            weight_map |= {link.theirs: file for link in some}
        if len(shards) > 1:
            total = sum(_nbytes(*entry) for entry in entries.values())
            _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        if origin:
            copy_text_files(weights_file(source).parent, folder)
        if stored.processor is not None:
            stored.processor.tokenizer.save(folder)
        if stored.processor is not None and stored.net.patch_embedder is not None:
            pixels = {"image_mean": stored.processor.mean, "image_std": stored.processor.std}
            _write_json(folder / PIXELS, (read_json(folder / PIXELS) if (folder / PIXELS).is_file() else {}) | pixels)
        _write_json(folder / "config.json", config)
    return form


def official_config(stored: StoredModel, origin: dict[str, Any]) -> tuple[CheckpointFormat, Config]:
    """The format that can express a model, and its config: that of its origin, with what has changed since.

    Raises:
        UserError: the reason why none can.
    """
    known = origin.get("format")
    reasons = []
    for form in sorted(formats(), key=lambda form: type(form).__name__ != known):  # that of the origin first
        try:
            config = form.config(stored.net, stored.processor)
        except UserError as error:
            reasons.append(str(error))
            continue
        old = origin["config"] if type(form).__name__ == known else {}
        return form, _updated(form.defaults | old, config)
    raise UserError(f"export: no official layout can express this model: {'; '.join(dict.fromkeys(reasons))}")


def _updated(old: Config, new: Config) -> Config:
    """`old` with the values of `new`, key by key also inside of objects."""
    merged = dict(old)
    for key, value in new.items():
        before = old.get(key)
        merged[key] = _updated(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _shards(
    links: list[TensorLink], entries: dict[str, tuple[torch.dtype, tuple[int, ...]]], most: int
) -> dict[str, list[TensorLink]]:
    shards: list[list[TensorLink]] = [[]]
    room = most
    for link in links:
        size = _nbytes(*entries[link.theirs])
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(link)
        room -= size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": some for i, some in enumerate(shards, 1)}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def check_target(target: Path, force: bool) -> None:
    """Refuses a target folder that is in use."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; give a folder that does not exist yet")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UserError(f"{target}: is not empty; give another folder, or --force to write into it")


@contextmanager
def new_folder(target: Path, force: bool) -> Iterator[Path]:
    """A folder that takes its name when it is complete; with `force`, its files go into a folder that is there."""
    target = target.expanduser().absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield folder
        folder.chmod(0o755)
        if not target.is_dir() or not any(target.iterdir()):
            os.replace(folder, target)
            return
        check_target(target, force)
        for stale in [*target.glob("model*.safetensors"), *target.glob(INDEX)]:  # of an earlier, other cut into shards
            stale.unlink()
        for file in folder.iterdir():
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
