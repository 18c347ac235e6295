"""Grids: what is understood, and what is refused in one line with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmframe.ablate.grid import Grid, read_grid
from mmframe.ablate.plan import Run, differences, plan
from mmframe.ablate.variants import variants
from mmframe.errors import UserError

from .conftest import GRID, answers

Written = Callable[..., Path]
Planned = Callable[..., tuple[Grid, list[Run]]]
FFN = GRID["axes"]["experts"]["ffn"]
AXES = {
    "experts": {"none": {}, "ffn": FFN},
    "masks": {"causal": {}, "image": {"model": {"backbone": {"init_args": {"attention": "image_bidirectional"}}}}},
}


@pytest.mark.parametrize(
    "mode, names",
    [
        ("one_at_a_time", ["baseline", "experts.ffn", "masks.image"]),
        ("product", ["none+causal", "none+image", "ffn+causal", "ffn+image"]),
    ],
)
def test_modes_make_variants(planned: Planned, mode: str, names: list[str]) -> None:
    grid, runs = planned(axes=AXES, mode=mode)
    assert [variant.id for variant in variants(grid)] == names
    assert [variant.baseline for variant in variants(grid)] == [True] + [False] * (len(names) - 1)
    assert [run.id for run in runs] == [f"{name}-s{seed}" for name in names for seed in (0, 1, 2)]


def test_a_run_differs_from_the_baseline_in_what_its_variant_says_and_in_nothing_else(planned: Planned) -> None:
    _, runs = planned(axes=AXES)
    told = {run.id: differences(run, runs[0]) for run in runs if run.seed == 1}
    assert told["baseline-s1"] == {}, "seeds are no difference"
    assert set(told["experts.ffn-s1"]) == {".model.router.class_path", ".model.router.init_args"}
    assert told["masks.image-s1"] == {".model.backbone.init_args.attention": ("image_bidirectional", None)}


def test_seeds_are_those_of_weights_and_data_and_the_budget_is_steps(planned: Planned) -> None:
    _, runs = planned(seeds=[4], budget={"tokens": 3000})
    config = runs[0].configs[""]
    assert config["seed_everything"] == 4 and config["data"]["init_args"]["seed"] == 4
    assert config["trainer"]["max_steps"] == 8 and "max_epochs" not in config["trainer"]
    assert config["trainer"]["callbacks"][-1]["class_path"].endswith("LastValidation")


def test_epochs_of_the_recipe_do_not_cut_a_budget_short(planned: Planned) -> None:
    _, runs = planned(overrides={"trainer": {"max_epochs": 1}})
    assert runs[0].configs[""]["trainer"]["max_epochs"] == -1


CHAIN = {"base": "toy/evip_pp", "axes": {"stages": {"all": {}, "short": {"stages": {"s1_2_semantic": None}}}}}


def test_stages_share_the_budget_and_a_stage_that_is_left_out_gives_its_share_to_the_others(planned: Planned) -> None:
    _, runs = planned(**CHAIN, budget={"samples": 960})
    assert list(runs[0].steps.values()) == [30, 30, 30, 30]
    assert runs[3].steps == {"s1_1_concept": 40, "s1_3_alignment": 40, "s2_instruction": 40}
    shares = {"s1_1_concept": 1, "s1_2_semantic": 1, "s1_3_alignment": 1, "s2_instruction": 3}
    _, runs = planned(**CHAIN, budget={"samples": 960, "shares": shares})
    assert list(runs[0].steps.values()) == [20, 20, 20, 60]


def test_a_change_wins_in_every_stage_and_a_class_replaces_the_old_arguments(planned: Planned) -> None:
    freezing = {"class_path": "Everything", "init_args": {"text_lr": 1e-4, "embedder_lr": 1e-4, "experts_lr": 1e-4}}
    axes = {"what": {"delta": {}, "full": {"model": {"freezing": freezing}}}}
    overrides = {"trainer": {"precision": "32-true"}, "stages": {"s2_instruction": {"checkpoint_every": 7}}}
    _, runs = planned(base="toy/evip_pp", axes=axes, overrides=overrides, budget=None)
    full = runs[3].configs
    assert all(config["model"]["freezing"] == freezing for config in full.values())
    assert all(config["trainer"]["precision"] == "32-true" for config in full.values())
    assert [config["checkpoint_every"] for config in full.values()] == [10, 10, 10, 7]
    assert list(runs[0].steps.values()) == [20] * 4, "without a budget the recipe's own steps"


def test_a_variant_may_start_from_another_recipe(planned: Planned) -> None:
    axes = {"recipe": {"dense": {}, "chain": {"base": "toy/evip", "checkpoint_every": 5}}}
    _, runs = planned(axes=axes, budget=None)
    assert list(runs[0].configs) == [""] and list(runs[3].configs) == [
        "s1_1_concept", "s1_2_semantic", "s1_3_alignment", "s2_instruction"
    ]  # fmt: skip
    assert {config["checkpoint_every"] for config in runs[3].configs.values()} == {5}


def test_the_same_recipe_is_the_same_run_in_any_grid(planned: Planned) -> None:
    _, one = planned(name="one")
    _, other = planned(name="other", axes={"masks": {"causal": {}, "image": AXES["masks"]["image"]}})
    assert [run.hash for run in one[:3]] == [run.hash for run in other[:3]]
    assert not {run.hash for run in one[3:]} & {run.hash for run in other[3:]}


def test_a_preset_lies_over_the_grid(written: Written) -> None:
    presets = {"fast": {"seeds": [7], "overrides": {"trainer": {"devices": 1}}, "budget": {"tokens": 900}}}
    file = written(overrides={"trainer": {"precision": "32-true"}}, presets=presets)
    fast = read_grid(file, "fast")
    assert fast.name == "grid-fast" and fast.seeds == (7,) and fast.budget is not None and fast.budget.unit == "tokens"
    assert fast.overrides.overlay.common == {"trainer": {"precision": "32-true", "devices": 1}}
    assert read_grid(file).seeds == (0, 1, 2)


def test_a_grid_extends_another(written: Written, tmp_path: Path) -> None:
    """Keys are replaced, but evaluators and presets name by name, and overrides as in recipes."""
    evaluators = {"text": {"class_path": "TextLoss", "init_args": {"count": 64}}}
    common = {
        "evaluators": evaluators,
        "metrics": ["text.nll"],
        "overrides": {"trainer": {"precision": "32-true"}},
        "presets": {"h100": {"seeds": [5], "overrides": {"trainer": {"accelerator": "gpu"}}}, "fast": {"seeds": [7]}},
    }
    (tmp_path / "_common.yaml").write_text(yaml.safe_dump(common))
    file = written(
        extends="_common.yaml",
        metrics=None,
        overrides={"trainer": {"devices": 1}},
        evaluators={"text": {"init_args": {"count": 8}}},
        presets={"h100": {"overrides": {"trainer": {"max_steps": 9}}}},
    )
    grid = read_grid(file, "h100")
    assert grid.metrics == ("text.nll",) and grid.seeds == (5,) and read_grid(file, "fast").seeds == (7,)
    assert grid.evaluators["text"] == {"class_path": "TextLoss", "init_args": {"count": 8}}
    expected = {"precision": "32-true", "devices": 1, "accelerator": "gpu", "max_steps": 9}
    assert grid.overrides.overlay.common == {"trainer": expected}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'?"),
    ({"base": "toy/dens"}, "base: no recipe 'toy/dens': neither a file nor a shipped recipe; did you mean 'toy/dense'"),
    ({"base": None}, "the grid names no recipe"),
    ({"extends": "comon.yaml"}, "extends: 'comon.yaml' is no file beside it"),
    ({"extends": "grid.yaml"}, "extends: grid.yaml goes round in a circle"),
    ({"mode": "products"}, "mode: 'products' is not known; did you mean 'product'?"),
    ({"mode": "list", "axes": AXES}, "list takes one axis"),
    ({"seeds": [0, 0]}, "seeds: a seed stands twice"),
    ({"seeds": "three"}, "seeds: expected a list of numbers"),
    ({"budget": {"sample": 3}}, "budget.sample: unknown key 'sample'; did you mean 'samples'?"),
    ({"budget": {"samples": 3, "tokens": 4}}, "budget: needs one of samples and tokens"),
    ({"budget": {"samples": 0}}, "budget.samples: expected a number above 0, got 0"),
    ({"budget": {"samples": 64, "shares": {"s1": 1}}}, "budget.shares: no stage is called 's1'"),
    ({"axes": None}, "the grid has no axis"),
    ({"axes": {"experts": {"a b": {}}}}, "axes.experts.a b: a name has letters"),
    ({"axes": {"x": {"a": {}, "b": {"model": {"ruter": "SharedRouter"}}}}},
     "model.ruter: the model has no argument 'ruter'; did you mean 'router'?"),
    ({"axes": {"x": {"a": {}, "b": {"model": {"router": "ModalityRuter"}}}}},
     "'ModalityRuter' is not a known router; did you mean 'ModalityRouter'?"),
    ({"axes": {"x": {"a": {}, "b": {"stages": {"s1": {}}}}}}, "variant b: recipe toy/dense has no stage 's1'"),
    ({"axes": {"x": {"a": {}, "b": {"checkpoint_every": 10}}}}, "b and a resolve to the same recipe (seed 0)"),
    ({"metrics": ["val_loss"]}, "metrics: no metric is called 'val_loss'; did you mean 'val/loss'?"),
    ({"metrics": ["txt.nll"], "evaluators": {"text": "TextLoss"}}, "called 'txt.nll'; did you mean 'text'?"),
    ({"lower_is_better": ["val/los"]}, "'val/los' is none of the metrics; did you mean 'val/loss'?"),
    ({"evaluators": {"text": "TextLos"}}, "'TextLos' is not a known evaluator; did you mean 'TextLoss'?"),
    ({"evaluators": {"text": {"class_path": "TextLoss", "init_args": {"cout": 3}}}},
     "TextLoss has no argument 'cout'; did you mean 'count'?"),
    ({"presets": {"fast": {"seed": [1]}}}, "presets.fast.seed: unknown key 'seed'"),
]  # fmt: skip


@pytest.mark.parametrize("keys, message", BAD, ids=[message[:40] for _, message in BAD])
def test_a_mistake_is_one_line_with_its_place(written: Written, keys: dict[str, Any], message: str) -> None:
    file = written(**keys)
    with pytest.raises(UserError) as error:
        plan(read_grid(file), answers)
    assert message in str(error.value) and "grid.yaml" in str(error.value)


def test_a_misspelt_preset_names_the_nearest(written: Written) -> None:
    with pytest.raises(UserError, match="no preset is called 'fats'; did you mean 'fast'?"):
        read_grid(written(presets={"fast": {}}), "fats")


def test_a_stage_without_a_share_is_named(planned: Planned) -> None:
    with pytest.raises(UserError, match="stage s1_2_semantic has no share"):
        planned(**CHAIN, budget={"samples": 960, "shares": {"s1_1_concept": 1}})
