"""Grid: an ablation as it is written down, read and checked. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from mmframe.cli.check import check_component
from mmframe.cli.merge import merge_config, merge_keys
from mmframe.cli.recipe import Overlay, Recipe, find, is_folder_name, load_recipe
from mmframe.cli.yamlio import KeyPath, load
from mmframe.errors import UserError, nearest, suggest

KEYS = ("base", "mode", "seeds", "budget", "overrides", "axes", "evaluators", "metrics", "lower_is_better", "presets")
MODES = ("one_at_a_time", "product", "list")
UNITS = ("samples", "tokens")
LOGGED = ("val/loss", "train/loss", "train/tokens_per_s", "train/image_token_share", "train/flops_per_token")
_NAMESPACES = ("val", "train", "data", "grad_norm", "memory")
_LOWER = ("loss", "nll", "perplexity", "bits", "error")


@dataclass(frozen=True)
class Change:
    """What a variant changes.

    Args:
        overlay: Laid over the recipe; wins in every stage, as a value of the command line does.
        base: Another recipe in place of the grid's.
        dropped: Stages that are left out (`stages: {NAME: null}`).
    """

    overlay: Overlay = Overlay()
    base: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How much a run may see, the same for all.

    Args:
        unit: samples (rows that the data hands out) or tokens.
        amount: Of all stages together.
        shares: Weight of each stage; empty: in proportion to max_steps of the base recipe.
    """

    unit: Literal["samples", "tokens"]
    amount: int
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """A grid, checked as far as it can be without resolving a variant.

    Args:
        file: Where it stands.
        name: Stem of the file, with the preset: names the folder of its results.
        base: Recipes that are merged in order.
        mode: one_at_a_time: the baseline (every axis at its first variant) and each other variant alone; product: all
            combinations; list: one axis that holds the whole list.
        seeds: The same for every variant, so that differences are paired.
        budget: None keeps the recipe's own steps.
        overrides: Of every run.
        axes: axis -> variant -> change; the first variant is the baseline.
        evaluators: name -> component, asked about the final weights.
        metrics: Columns of the table; the first is the headline.
        lower_is_better: Metrics for which a negative difference is an improvement.
        places: "file:line" of the keys.
    """

    file: Path
    name: str
    base: tuple[str, ...]
    mode: str
    seeds: tuple[int, ...]
    budget: Budget | None
    overrides: Change
    axes: dict[str, dict[str, Change]]
    evaluators: dict[str, dict[str, Any]]
    metrics: tuple[str, ...]
    lower_is_better: tuple[str, ...]
    places: dict[KeyPath, str] = field(default_factory=dict, compare=False)

    def recipe(self, base: Iterable[str] = ()) -> Recipe:
        """The base recipe, or another: beside the grid's file, by path, or by the name of a shipped one."""
        words = [str(_beside(self.file, word)) for word in (base or self.base)]
        return load_recipe(words)

    def wanted_of(self, evaluator: str) -> list[str]:
        """Keys of an evaluator's figures that are metrics of the grid."""
        return [metric.partition(".")[2] for metric in self.metrics if metric.partition(".")[0] == evaluator]


def read_grid(file: Path, preset: str | None = None) -> Grid:
    """Reads a grid.

    Args:
        file: YAML.
        preset: Key of `presets:` that is laid over it.

    Raises:
        UserError: for the first mistake, in one line with its place.
    """
    content, places = _extended(file, ())
    return _Reader(file, content, places).read(preset)


def preset_names(file: Path) -> list[str]:
    """What `--preset` may be for a grid."""
    content, _ = _extended(file, ())
    return list(content.get("presets") or {})


def _extended(file: Path, inside: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """A file's keys over those of the grid that it extends, and where each stands.

    Raises:
        UserError: `extends:` names no file, or goes round in a circle.
    """
    content, places = load(file)
    word = content.pop("extends", None)
    if word is None:
        return content, places
    at, other = places[("extends",)], file.parent / str(word)
    if not other.is_file():
        raise UserError(f"{at}: extends: {word!r} is no file beside it; {suggest(str(word), beside_it(file))}")
    if other.resolve() in (file.resolve(), *inside):
        raise UserError(f"{at}: extends: {word} goes round in a circle")
    below, its_places = _extended(other, (file.resolve(), *inside))
    return _laid(below, content), {**its_places, **places}


def beside_it(file: Path) -> list[str]:
    """Names of the YAML files in the folder of one."""
    return [path.name for path in sorted(file.parent.glob("*.yaml")) if path != file]


def _laid(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Keys over keys: `overrides` merge as in recipes, `evaluators` and `presets` by name, all else is replaced."""
    out = dict(old)
    for key, value in new.items():
        before = old.get(key) or {}
        if not isinstance(value, dict) or not isinstance(before, dict):
            out[key] = value
        elif key == "presets":
            out[key] = before | {name: _laid(before.get(name) or {}, laid or {}) for name, laid in value.items()}
        else:
            merging: dict[str, Callable[[Any, Any], Any]] = {"overrides": merge_config, "evaluators": merge_keys}
            out[key] = merging[key](before, value) if key in merging else value
    return out


class _Reader:
    def __init__(self, file: Path, content: dict[str, Any], places: dict[KeyPath, str]) -> None:
        self.file, self.content, self.places = file, content, dict(places)

    def place(self, path: KeyPath) -> str:
        """Where a key stands, or the nearest key above it."""
        found = (self.places.get(path[:end]) for end in range(len(path), 0, -1))
        return next((place for place in found if place), str(self.file))

    def fail(self, path: KeyPath, message: str) -> NoReturn:
        raise UserError(f"{self.place(path)}: {'.'.join(path)}: {message}")

    def read(self, preset: str | None) -> Grid:
        self.keys((), self.content)
        presets = self.mapping(("presets",), self.content.pop("presets", None))
        for name, laid in presets.items():
            self.keys(("presets", str(name)), self.mapping(("presets", str(name)), laid))
        if preset is not None:
            if preset not in presets:
                raise UserError(f"{self.file}: no preset is called {preset!r}; {suggest(preset, presets)}")
            self.lay(preset, presets[preset] or {})
        content = {key: value for key, value in self.content.items() if not key.startswith("x-")}  # holders of anchors
        axes = self.axes(content.get("axes"))
        evaluators = self.evaluators(content.get("evaluators"))
        metrics = self.names(("metrics",), content.get("metrics", ["val/loss"]))
        lower = self.names(("lower_is_better",), content.get("lower_is_better", []))
        for metric in metrics:
            self.metric(metric, evaluators)
        for metric in lower:
            if metric not in metrics:
                self.fail(("lower_is_better",), f"{metric!r} is none of the metrics; {suggest(metric, metrics)}")
        mode = content.get("mode", "one_at_a_time")
        if mode not in MODES:
            self.fail(("mode",), f"{mode!r} is not known; {suggest(str(mode), MODES)}")
        if mode == "list" and len(axes) != 1:
            self.fail(("mode",), f"list takes one axis whose variants are the whole list, the grid has {len(axes)}")
        return Grid(
            file=self.file,
            name=self.file.stem + (f"-{preset}" if preset else ""),
            base=self.base((), content.get("base")),
            mode=str(mode),
            seeds=self.seeds(content.get("seeds", [0, 1, 2])),
            budget=self.budget(content.get("budget")),
            overrides=self.change(("overrides",), content.get("overrides")),
            axes=axes,
            evaluators=evaluators,
            metrics=metrics,
            lower_is_better=(*lower, *(m for m in metrics if m.endswith(_LOWER) and m not in lower)),
            places=self.places,
        )

    def keys(self, path: KeyPath, given: dict[str, Any]) -> None:
        known = KEYS if not path else KEYS[:-1]
        for key in given:
            if key not in known and not str(key).startswith("x-"):
                self.fail((*path, str(key)), f"unknown key {key!r}; {suggest(str(key), known)}")

    def lay(self, preset: str, laid: dict[str, Any]) -> None:
        """A preset over the grid."""
        self.content = _laid(self.content, laid)
        begins = ("presets", preset)
        self.places |= {path[2:]: place for path, place in self.places.items() if path[:2] == begins and path[2:]}

    def mapping(self, path: KeyPath, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict | None):
            self.fail(path, f"expected a mapping of keys, got {value!r}")
        return cast(dict[str, Any], value or {})

    def names(self, path: KeyPath, value: Any) -> tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.fail(path, f"expected a list of names, got {value!r}")
        return tuple(names)

    def base(self, path: KeyPath, value: Any) -> tuple[str, ...]:
        where = (*path, "base")
        if value is None:
            self.fail(where, "the grid names no recipe: base: NAME_OR_PATH, or a list of them")
        words = self.names(where, value)
        for word in words:
            try:
                _beside(self.file, word)
            except UserError as error:
                self.fail(where, str(error))
        return words

    def seeds(self, value: Any) -> tuple[int, ...]:
        seeds = value if isinstance(value, list) else [value]
        if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds):
            self.fail(("seeds",), f"expected a list of numbers, got {value!r}")
        if len(set(seeds)) < len(seeds):
            self.fail(("seeds",), f"a seed stands twice in {value!r}")
        return tuple(seeds)

    def budget(self, value: Any) -> Budget | None:
        if value is None:
            return None
        given = self.mapping(("budget",), value)
        for key in given:
            if key not in (*UNITS, "shares"):
                self.fail(("budget", str(key)), f"unknown key {key!r}; {suggest(str(key), (*UNITS, 'shares'))}")
        units = [unit for unit in UNITS if unit in given]
        if len(units) != 1:
            self.fail(("budget",), "needs one of samples and tokens: budget: {samples: 3200}")
        amount = given[units[0]]
        if not isinstance(amount, int) or isinstance(amount, bool) or amount < 1:
            self.fail(("budget", units[0]), f"expected a number above 0, got {amount!r}")
        shares = self.mapping(("budget", "shares"), given.get("shares"))
        for stage, share in shares.items():
            if not isinstance(share, int | float) or isinstance(share, bool) or share <= 0:
                self.fail(("budget", "shares", str(stage)), f"expected a number above 0, got {share!r}")
        return Budget(cast(Any, units[0]), amount, shares)

    def axes(self, value: Any) -> dict[str, dict[str, Change]]:
        axes = self.mapping(("axes",), value)
        if not axes:
            self.fail(("axes",), "the grid has no axis: axes: {NAME: {BASELINE: {}, VARIANT: {model: ...}}}")
        found: dict[str, dict[str, Change]] = {}
        for axis, variants in axes.items():
            self.plain(("axes", axis))
            given = self.mapping(("axes", axis), variants)
            if not given:
                self.fail(("axes", axis), "the axis has no variants")
            for name in given:
                self.plain(("axes", axis, name))
            found[axis] = {name: self.change(("axes", axis, name), change) for name, change in given.items()}
        return found

    def plain(self, path: KeyPath) -> None:
        if not isinstance(path[-1], str) or not is_folder_name(path[-1]):
            self.fail(tuple(map(str, path)), "a name has letters, digits, _, - and . (numbers stand in quotes)")

    def change(self, path: KeyPath, value: Any) -> Change:
        given = dict(self.mapping(path, value))
        base = self.base(path, given.pop("base")) if "base" in given else ()
        stages = self.mapping((*path, "stages"), given.pop("stages", None))
        dropped = tuple(stage for stage, said in stages.items() if said is None)
        said = {s: self.mapping((*path, "stages", s), o) for s, o in stages.items() if s not in dropped}
        length = len(path)
        places = {key[length:]: at for key, at in self.places.items() if key[:length] == path and key[length:]}
        return Change(Overlay(given, said, places), base, dropped)

    def evaluators(self, value: Any) -> dict[str, dict[str, Any]]:
        given = self.mapping(("evaluators",), value)
        found = {}
        for name, spec in given.items():
            self.plain(("evaluators", name))
            if "." in name:
                self.fail(("evaluators", name), "a name without dots: its metrics are called NAME.KEY")
            found[name] = {"class_path": spec} if isinstance(spec, str) else spec
            check_component(("evaluators", name), found[name], "evaluator", self.place)
        return found

    def metric(self, name: str, evaluators: dict[str, Any]) -> None:
        """`<evaluator>.<key>`, or what training logs."""
        owner, dot, _ = name.partition(".")
        if dot and owner in evaluators:
            return
        namespace, slash, _ = name.partition("/")
        if slash and namespace in _NAMESPACES:
            return
        hint = nearest(owner if dot else name, [*evaluators, *LOGGED])
        known = ", ".join([*(f"{evaluator}.KEY" for evaluator in evaluators), "val/loss", "train/..."])
        self.fail(("metrics",), f"no metric is called {name!r}; {hint} allowed: {known}")


def _beside(file: Path, word: str) -> Path:
    """A recipe beside the grid's file, or wherever `--config` would find it."""
    beside = file.parent / word
    return beside if beside.is_file() else find(word)
