"""Official checkpoints as others publish them: a config, tensors that are read one by one, a tokenizer's files."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmframe.checkpoints import Config
from mmframe.errors import UserError
from mmframe.safetensors_file import Entry, SafetensorsFile

INDEX = "model.safetensors.index.json"
PIXELS = "preprocessor_config.json"
TEXT_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    PIXELS,
)
"""Small files of an official folder that go with the weights."""
HUB_PATTERNS = ("config.json", INDEX, "*.safetensors", *TEXT_FILES)
"""What is fetched from the hub: data, never code."""


class Official(ABC):
    """A checkpoint that is not ours.

    Attributes:
        name: for messages.
        folder: holds config.json and the tokenizer's files.
        config: the official config.json.
        entries: official tensor name -> dtype and shape.
    """

    name: str
    folder: Path
    config: Config
    entries: dict[str, Entry]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""


class SafetensorsFolder(Official):
    """A folder with config.json and one or several safetensors shards.

    Args:
        folder: The folder.

    Raises:
        UserError: a file is missing or damaged, or a tensor stands in two shards.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = str(folder), folder
        self.config = read_json(folder / "config.json")
        if (folder / INDEX).is_file():
            index = read_json(folder / INDEX).get("weight_map", {})
            files = [folder / name for name in sorted(set(index.values()))]
        else:
            index, single = {}, folder / "model.safetensors"
            files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
        lost = [file.name for file in files if not file.is_file()]
        if lost:
            raise UserError(f"{folder}: {INDEX} names {len(lost)} shards that are not there, first {lost[0]}")
        self.shard: dict[str, SafetensorsFile] = {}
        for file in map(SafetensorsFile, files):
            for name in file.entries:
                if name in self.shard:
                    raise UserError(f"{folder}: {name} is both in {self.shard[name].path.name} and in {file.path.name}")
                self.shard[name] = file
        for name, file_name in index.items():
            if name not in self.shard:
                raise UserError(f"{folder}: {INDEX} says that {name} is in {file_name}, but it is not")
        self.entries = {name: file.entries[name] for name, file in self.shard.items()}

    def read(self, name: str) -> Tensor:
        return self.shard[name].read(name)


class PickleFolder(Official):
    """A folder with config.json and pickled weights (.bin, .pth), read without running what a pickle may hold.

    Args:
        folder: The folder.
        files: Its pickles.
    """

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.name, self.folder = str(folder), folder
        self.config = read_json(folder / "config.json")
        self.state: dict[str, Tensor] = {}
        for file in files:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # a damaged file, or one that holds more than tensors: many types
                reason = str(error).strip().partition("\n")[0]
                raise UserError(f"{file}: is no plain pickle of tensors: {reason}") from error
            if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
                raise UserError(f"{file}: holds more than names and tensors; give the weights alone")
            twice = sorted(set(state) & set(self.state))
            if twice:
                raise UserError(f"{folder}: {twice[0]} is in {file.name} and in another file")
            self.state |= state
        self.entries = {name: Entry(t.dtype, tuple(t.shape)) for name, t in self.state.items()}

    def read(self, name: str) -> Tensor:
        return self.state[name].clone()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: no such file, or something else in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file.parent}: has no {file.name}; give a folder with config.json and weights") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no JSON object")
    return content


def is_hub_id(source: str) -> bool:
    """Whether a word reads as ORG/NAME or ORG/NAME@REVISION of the Hugging Face hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source) is not None and not source.startswith((".", "/"))


def open_official(source: str | Path, trust_pickle: bool = False) -> Official:
    """Opens an official folder, a GGUF file, or a checkpoint of the Hugging Face hub (fetched, or from its cache).

    Args:
        source: Folder, file.gguf, or hub id ORG/NAME[@REVISION].
        trust_pickle: Also read .bin and .pth files.

    Raises:
        UserError: there is no such thing, it is damaged, or it holds pickles alone.
    """
    path = Path(source).expanduser()
    if not path.exists() and path.suffix in (".safetensors", ".gguf"):
        raise UserError(f"{path}: no such file")
    if path.is_file():
        if path.suffix == ".gguf":
            from mmframe.gguf_file import GgufFile

            return GgufFile(path)
        raise UserError(f"{path}: is no .gguf file; give the folder that holds config.json and the weights")
    if not path.is_dir():
        if not is_hub_id(str(source)):
            raise UserError(f"{source}: no such folder or .gguf file, and no hub id of the form ORG/NAME")
        path = hub_folder(str(source), trust_pickle)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: has no config.json (official folder) and no weights.safetensors (stage or import)")
    pickles = sorted([*path.glob("*.bin"), *path.glob("*.pth")])
    if any(path.glob("*.safetensors")) or (path / INDEX).is_file():
        return SafetensorsFolder(path)
    if pickles and not trust_pickle:
        raise UserError(
            f"{path}: holds {len(pickles)} pickles ({pickles[0].name}) and no safetensors; a pickle can run code: "
            "fetch the safetensors version, or give --trust-pickle if you know where it comes from"
        )
    if not pickles:
        raise UserError(f"{path}: holds no *.safetensors (of the hub, pickles are fetched only with --trust-pickle)")
    return PickleFolder(path, pickles)


def hub_folder(source: str, pickles: bool = False) -> Path:
    """Local folder of a checkpoint of the Hugging Face hub; fetches what its cache lacks.

    Args:
        source: ORG/NAME or ORG/NAME@REVISION.
        pickles: Fetch .bin and .pth too.

    Raises:
        UserError: not there, not allowed, or offline without a copy in the cache.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = source.partition("@")
    patterns = [*HUB_PATTERNS, *(("*.bin", "*.pth") if pickles else ())]
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns)
    except GatedRepoError as error:
        raise UserError(f"hub: {name} asks you to accept its terms first: log in with `hf auth login`") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(f"hub: there is no {source}, and no folder of that name here either") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"hub: there is no folder {name} here, it is not in the hub's local cache, and the hub cannot be reached; "
            "go online once"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"hub: {name} could not be fetched: {str(error).strip().partition(chr(10))[0]}") from error
    return Path(folder)
