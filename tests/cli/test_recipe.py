"""Composing recipes: base, stages, names, overrides, YAML."""

import pytest

from mmframe.cli.arguments import parse
from mmframe.cli.recipe import differing_keys, load_recipe, recipe_hash, recipe_name, shipped
from mmframe.cli.yamlio import dump, load, parse_value
from mmframe.errors import UserError


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_bases_and_stages_compose(tmp_path):
    write(
        tmp_path,
        low="trainer: {max_steps: 1, precision: 32}\nmodel: {router: {class_path: A, init_args: {x: 1}}}\n",
        mid="base: low.yaml\ntrainer: {max_steps: 2}\nstages:\n  one: {trainer: {max_steps: 3}}\n  two: {}\n",
        top="base: [mid.yaml]\nstages:\n  two: {model: {router: {init_args: {y: 2}}}}\n  three: {model: {router: B}}\n",
    )
    recipe = load_recipe(["top.yaml"])
    assert list(recipe.stages) == ["one", "two", "three"]
    assert recipe.resolve("one")["trainer"] == {"max_steps": 3, "precision": 32}
    assert recipe.resolve("two")["model"]["router"] == {"class_path": "A", "init_args": {"x": 1, "y": 2}}
    assert recipe.resolve("three")["model"]["router"] == {"class_path": "B"}
    with pytest.raises(UserError, match="choose one with --stage: one, two, three"):
        recipe.resolve()
    with pytest.raises(UserError, match="did you mean 'three'"):
        recipe.resolve("tree")


def test_a_circle_of_bases_is_named(tmp_path):
    write(tmp_path, a="base: b.yaml\n", b="base: c.yaml\n", c="base: a.yaml\n")
    with pytest.raises(UserError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*c\.yaml -> .*a\.yaml"):
        load_recipe(["a.yaml"])


def test_a_missing_base_names_the_nearest_file(tmp_path):
    write(tmp_path, common="", mine="base: comon.yaml\n")
    with pytest.raises(UserError, match=r"mine\.yaml:1: base 'comon\.yaml'.*did you mean 'common\.yaml'"):
        load_recipe(["mine.yaml"])


def test_overrides_win_in_every_stage_and_flags_may_stand_before_config(tmp_path):
    write(tmp_path, r="trainer: {max_steps: 1}\nstages: {one: {trainer: {max_steps: 3}}, two: {}}\n")
    for words in (["--trainer.max_steps=9", "--config", "r.yaml"], ["--config=r.yaml", "--trainer.max_steps", "9"]):
        args = parse("fit", words)
        recipe = load_recipe(args.configs).with_overrides(args.overrides)
        assert [recipe.resolve(stage)["trainer"]["max_steps"] for stage in recipe.stages] == [9, 9]


def test_an_override_can_be_for_one_stage(tmp_path):
    write(tmp_path, r="trainer: {max_steps: 1}\nstages: {one: {}, two: {}}\n")
    recipe = load_recipe(["r.yaml"]).with_overrides([("stages.two.trainer.max_steps", "5")])
    assert [recipe.resolve(stage)["trainer"]["max_steps"] for stage in recipe.stages] == [1, 5]


def test_several_configs_merge_left_to_right(tmp_path):
    write(tmp_path, a="trainer: {max_steps: 1, devices: 1}\n", b="trainer: {max_steps: 2}\n")
    recipe = load_recipe(["a.yaml", "b.yaml"])
    assert recipe.resolve()["trainer"] == {"max_steps": 2, "devices": 1}
    assert recipe.name == "a+b"


def test_holders_of_anchors_are_allowed(tmp_path):
    write(tmp_path, a="x-rates: &r {embedder_lr: 1e-3}\nmodel: {freezing: {class_path: V, init_args: *r}}\n")
    assert load_recipe(["a.yaml"]).resolve() == {
        "model": {"freezing": {"class_path": "V", "init_args": {"embedder_lr": 0.001}}}
    }


@pytest.mark.parametrize(
    "text, value",
    [
        ("3e-4", 3e-4), ("1E5", 1e5), ("1.5e-3", 1.5e-3), ("-2.", -2.0), ("12", 12), ("true", True), ("null", None),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"),
        ("e5", "e5"), ("[1, 2e-1]", [1, 0.2]), ("all: [", "all: ["),
    ],
)  # fmt: skip
def test_values_are_read_as_a_person_reads_them(text, value):
    found = parse_value(text)
    assert found == value and type(found) is type(value)


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    write(tmp_path, a="trainer:\n  max_steps: 1\n  devices: 1\n  max_steps: 2\n")
    with pytest.raises(UserError, match=r"a\.yaml:4: key 'trainer\.max_steps' stands twice \(also in line 2\)"):
        load_recipe(["a.yaml"])


def test_broken_yaml_tells_the_line(tmp_path):
    write(tmp_path, a="trainer: {max_steps: 1\nmodel: [\n")
    with pytest.raises(UserError, match=r"a\.yaml:\d+: not valid YAML"):
        load_recipe(["a.yaml"])


def test_dump_reads_back_as_the_same(tmp_path):
    content = {"a": 3e-4, "b": ["yes", "no"], "c": {"d": None, "e": "1e-3", "f": [{"g": True}]}, "h": 1e-08}
    (tmp_path / "a.yaml").write_text(dump(content))
    assert load(tmp_path / "a.yaml")[0] == content


def test_names_do_not_depend_on_the_working_directory(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("trainer: {}\n")
    assert {"toy/evip", "toy/evip_pp", "toy/dense"} <= set(shipped())
    assert "mine" not in shipped()
    assert load_recipe(["toy/evip"]).name == "toy/evip"
    assert recipe_name(tmp_path / "recipes" / "mine.yaml") == "mine"


def test_hash_ignores_the_order_and_sees_every_value():
    one, other = {"a": 1, "b": {"c": 2.0, "d": 3}}, {"b": {"d": 3, "c": 2.0}, "a": 1}
    assert recipe_hash(one) == recipe_hash(other)
    assert recipe_hash(one) != recipe_hash({**one, "a": 2})
    assert differing_keys(one, {"a": 1, "b": {"c": 2.5, "e": 1}}) == ["b.c", "b.d", "b.e"]


@pytest.mark.parametrize("name", ["toy/evip_pp", "toy/evip", "toy/dense"])
def test_a_copy_resolves_to_the_same(cli, tmp_path, name):
    target = tmp_path / "deep" / "copy.yaml"
    assert cli("recipes", "cp", name, target)[0] == 0
    original, copied = load_recipe([name]), load_recipe([str(target)])
    assert list(original.stages) == list(copied.stages)
    for stage in original.stages or [None]:
        assert recipe_hash(original.resolve(stage)) == recipe_hash(copied.resolve(stage))
    assert shipped()[name].read_text().splitlines()[0] == target.read_text().splitlines()[0]  # comments stay
    assert cli("recipes", "cp", name, target)[0] == 2  # nothing is overwritten


def test_show_prints_a_configuration_that_resolves_to_the_same(cli, tmp_path):
    code, out, _ = cli("recipes", "show", "toy/evip_pp", "--stage", "s1_3_alignment", "--model.router.init=zero")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(out)
    recipe = load_recipe(["toy/evip_pp"]).with_overrides([("model.router.init", "zero")])
    assert load_recipe(["shown.yaml"]).resolve() == recipe.resolve("s1_3_alignment")
