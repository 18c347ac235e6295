"""Recipes: `base:`, `stages:`, `start_from:`, overrides -> one plain LightningCLI configuration per stage."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmframe.cli.merge import assign, merge_config
from mmframe.cli.start_from import check_complete, lay_under
from mmframe.cli.yamlio import KeyPath, load, parse_value
from mmframe.errors import UserError, suggest
from mmframe.registry import KINDS

TASKS = "tasks"
"""Folder of the shipped tasks of `mmframe evaluate`, beside the recipes."""
Override = tuple[str, str]
"""Key path and YAML text of `--key=value`."""


@dataclass(frozen=True)
class Overlay:
    """A change of a whole recipe: what a variant of an ablation grid says. It wins over the recipe in every stage.

    Args:
        common: For all stages.
        stages: For single stages, by name.
        places: "file:line" of the key paths, for error messages.
    """

    common: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A composed recipe.

    Args:
        name: e.g. "toy/evip_pp"; names the run directory.
        common: The part that all stages share.
        stages: Overlays by stage name, in order; empty when the recipe is one single run.
        places: "file:line" of the key paths, for error messages.
        overlays: Changes in order, later ones win.
        overrides: Values of the command line; they win over everything, in every stage.
    """

    name: str
    common: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    overlays: tuple[Overlay, ...] = ()
    overrides: tuple[Override, ...] = ()

    def with_overrides(self, overrides: Sequence[Override]) -> Recipe:
        """The recipe with values of the command line added."""
        return replace(self, overrides=(*self.overrides, *overrides))

    def check_stage(self, stage: str | None) -> None:
        """Raises UserError when the stage is not one of the recipe's."""
        if stage is not None and not self.stages:
            raise UserError(f"recipe {self.name}: has no stages, so --stage={stage} means nothing; leave it out")
        if stage is not None and stage not in self.stages:
            raise UserError(f"recipe {self.name}: no stage is called {stage!r}; {suggest(stage, self.stages)}")

    def resolve(self, stage: str | None = None) -> dict[str, Any]:
        """The plain LightningCLI configuration of one stage (or of a recipe without stages)."""
        self.check_stage(stage)
        if self.stages and stage is None:
            raise UserError(f"recipe {self.name}: has stages; choose one with --stage: {', '.join(self.stages)}")
        config = dict(functools.reduce(merge_config, self.layers(stage)))
        config.pop("start_from", None)
        config = normalise(config)
        start, model = self.start_from(stage), config.get("model") or {}
        if start is not None and isinstance(model, dict):
            config["model"] = lay_under(model, start)
        for key, text in self._overrides_of(stage):
            if key != "start_from":
                config = normalise(assign(config, key, parse_value(text)))
        if start is not None and isinstance(config.get("model"), dict):
            check_complete(config["model"], start)
        return config

    def start_from(self, stage: str | None = None) -> str | None:
        """The checkpoint that a stage takes its model from; None: the recipe describes the model itself.

        Raises:
            UserError: it is no path.
        """
        found: Any = None
        for said in self.layers(stage):
            found = said.get("start_from", found)
        for key, text in self._overrides_of(stage):
            if key == "start_from":
                found = None if parse_value(text) is None else text
        if found is not None and not isinstance(found, str):
            raise UserError(f"{self.place(('start_from',), stage)}: start_from: expected a path, got {found!r}")
        return found

    def layers(self, stage: str | None = None) -> list[dict[str, Any]]:
        """What the recipe and then its overlays say of a stage: in common, of it alone. Later ones win."""
        said = [self.common, self.stages.get(stage or "", {})]
        for overlay in self.overlays:
            said += [overlay.common, overlay.stages.get(stage or "", {})]
        return said

    def own_layers(self, stage: str | None) -> list[dict[str, Any]]:
        """Of `layers`, those that speak of this stage alone."""
        return self.layers(stage)[1::2]

    def _overrides_of(self, stage: str | None) -> list[Override]:
        """Those of all stages, and those written `--stages.NAME.key=value` for this one."""
        found = []
        for key, text in self.overrides:
            if not key.startswith("stages."):
                found.append((key, text))
                continue
            rest = key.removeprefix("stages.")
            name = next((s for s in self.stages if rest.startswith(s + ".")), None)
            if name is None:
                self.check_stage(rest.partition(".")[0])
                raise UserError(f"--{key}: write --stages.{rest.partition('.')[0]}.KEY=VALUE")
            if name == stage:
                found.append((rest.removeprefix(name + "."), text))
        return found

    def place(self, path: KeyPath, stage: str | None = None) -> str:
        """Where a key of the resolved configuration was written: "file:line", or "command line"."""
        wanted = _short(path)
        for key, _ in self._overrides_of(stage):
            given = _short(tuple(key.rstrip("+").split(".")))
            if given == wanted[: len(given)] or wanted == given[: len(wanted)]:
                return "command line"
        for overlay in reversed(self.overlays):
            if found := _nearest_place(overlay.places, path, stage, leaf=True):
                return found
        if found := _nearest_place(self.places, path, stage):
            return found
        return f"recipe {self.name}"


def _nearest_place(places: dict[KeyPath, str], path: KeyPath, stage: str | None, leaf: bool = False) -> str | None:
    """Place of a key path, or of the longest path above it; `leaf`: only if nothing else is said below that."""
    for end in range(len(path), 0, -1):
        for prefix in (("stages", stage), ()) if stage else ((),):
            whole = (*prefix, *path[:end])
            if whole not in places:
                continue
            below = any(len(other) > len(whole) and other[: len(whole)] == whole for other in places)
            return None if leaf and below and end < len(path) else places[whole]
    return None


def _short(path: KeyPath) -> KeyPath:
    return tuple(part for part in path if part != "init_args")


def normalise(config: dict[str, Any]) -> dict[str, Any]:
    """Components of the model, and the data, written by name alone become `{class_path: name}`."""
    out = dict(config)
    if isinstance(out.get("model"), dict):
        pairs = out["model"].items()
        out["model"] = {k: {"class_path": v} if k in KINDS and isinstance(v, str) else v for k, v in pairs}
    if isinstance(out.get("data"), str):
        out["data"] = {"class_path": out["data"]}
    return out


def recipe_hash(config: dict[str, Any]) -> str:
    """Short hash of a resolved configuration; the order of the keys does not count."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_keys(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Key paths at which two configurations differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        missing = object()
        return [
            path
            for key in keys
            for path in differing_keys(one.get(key, missing), other.get(key, missing), f"{prefix}{key}.")
        ]
    return [] if one == other and type(one) is type(other) else [prefix.rstrip(".")]


# ---- finding and composing ------------------------------------------------------------------------------------------


def recipe_root() -> Path | None:
    """Folder of the shipped recipes: inside the wheel, or top level of a checkout. Never depends on the cwd."""
    package = Path(__file__).parent.parent
    for root in (package / "_recipes", package.parent / "recipes"):
        if root.is_dir():
            return root
    return None


OVERLAYS = "strategies"
"""Folder of what is laid over a recipe, as a second --config, and is none by itself."""


def shipped() -> dict[str, Path]:
    """The shipped recipes by name, e.g. "toy/evip". Parts of recipes (a leading "_"), overlays and tasks are not."""
    return {name: file for name, file in _files().items() if not name.startswith(f"{OVERLAYS}/")}


def overlays() -> dict[str, Path]:
    """The shipped overlays by name, e.g. "strategies/fsdp2"."""
    return {name: file for name, file in _files().items() if name.startswith(f"{OVERLAYS}/")}


def _files() -> dict[str, Path]:
    root = recipe_root()
    found = {file.relative_to(root): file for file in sorted(root.rglob("*.yaml"))} if root else {}
    return {
        path.with_suffix("").as_posix(): file
        for path, file in found.items()
        if not path.name.startswith("_") and path.parts[0] != TASKS
    }


def find(word: str) -> Path:
    """The file of a recipe given by path, or by the name of a shipped one.

    Raises:
        UserError: If there is none; with the nearest name.
    """
    if Path(word).is_file():
        return Path(word)
    name = word.removesuffix(".yaml").removeprefix("recipes/")
    if name in (files := _files()):
        return files[name]
    known = overlays() if name.startswith(f"{OVERLAYS}/") else shipped()
    raise UserError(f"no recipe {word!r}: neither a file nor a shipped recipe; {suggest(name, known)}")


def recipe_name(file: Path) -> str:
    """Path inside the folder `recipes` it lies in, else the stem: demo/evip and evip do not share a directory."""
    path = file.resolve()
    root = recipe_root()
    if root is not None and path.is_relative_to(root.resolve()):
        return path.relative_to(root.resolve()).with_suffix("").as_posix()
    parts = path.with_suffix("").parts
    if "recipes" in parts[:-1]:
        after = len(parts) - parts[::-1].index("recipes")
        return "/".join(parts[after:])
    return path.stem


def load_recipe(words: Sequence[str]) -> Recipe:
    """Composes recipes given by path or name; later ones are merged over earlier ones.

    Raises:
        UserError: For a missing file, a cycle of bases, or a wrong form of `base:` or `stages:`.
    """
    if not words:
        raise UserError("no recipe: give one with --config PATH_OR_NAME; `mmframe recipes ls` lists the shipped ones")
    recipe = Recipe("", {})
    for word in words:
        recipe = _over(recipe, _compose(find(word), ()))
    return replace(recipe, name="+".join(recipe_name(find(word)) for word in words))


def _compose(file: Path, inside: tuple[Path, ...]) -> Recipe:
    path = file.resolve()
    if path in inside:
        cycle = " -> ".join(str(p) for p in (*inside[inside.index(path) :], path))
        raise UserError(f"{file}: `base:` goes round in a circle: {cycle}")
    content, places = load(file)
    bases = content.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{places[('base',)]}: 'base' is a path or a list of paths, got {bases!r}")
    stages = content.pop("stages", None) or {}
    if not isinstance(stages, dict) or not all(isinstance(s, dict | None) for s in stages.values()):
        raise UserError(f"{places[('stages',)]}: 'stages' maps the name of each stage to what it changes")
    for stage in stages:
        if not is_folder_name(str(stage)):
            raise UserError(f"{file}: stage name {stage!r} must be a plain folder name (letters, digits, _, -, .)")
    common = {key: value for key, value in content.items() if not str(key).startswith("x-")}  # x-: holders of anchors
    own = Recipe("", common, {str(k): v or {} for k, v in stages.items()}, places)
    recipe = Recipe("", {})
    for base in bases:
        recipe = _over(recipe, _compose(_base_file(base, file, places), (*inside, path)))
    return _over(recipe, own)


def is_folder_name(text: str) -> bool:
    """Whether a name is a plain one: letters, digits, _, -, ."""
    return bool(text) and text not in (".", "..") and all(c.isalnum() or c in "_-." for c in text)


def _base_file(base: str, file: Path, places: dict[KeyPath, str]) -> Path:
    beside = file.parent / base
    if beside.is_file():
        return beside
    root = recipe_root()
    if root is not None and (root / f"{base.removesuffix('.yaml')}.yaml").is_file():
        return root / f"{base.removesuffix('.yaml')}.yaml"
    options = [p.name for p in sorted(file.parent.glob("*.yaml"))]
    raise UserError(f"{places.get(('base',), file)}: base {base!r} is no file beside it; {suggest(base, options)}")


def _over(old: Recipe, new: Recipe) -> Recipe:
    """A recipe over another: the common parts merge, and the stages of the same name."""
    stages = copy.deepcopy(old.stages)
    for name, overlay in new.stages.items():
        stages[name] = merge_config(stages.get(name, {}), overlay)
    # what `new` says in common must also win over what a stage of `old` says? No: a stage is more special.
    return Recipe("", merge_config(old.common, new.common), stages, {**old.places, **new.places})
