"""`mmframe plan`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmframe.planning.gpus import gpu, tiles_of_a_core
from tests.cli.conftest import cli, elsewhere, fails  # noqa: F401  fixtures
from tests.plan.models import SMALL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):
    """The plan of a chain of stages, as JSON and as a table."""
    import contextlib
    import io

    from mmframe.cli.main import main

    def said(*words: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["plan", "--config", "toy/evip_pp", "--gpu", "h100", *words]) == 0
        return out.getvalue()

    return json.loads(said("--json", "--gpus=2", "--measure")), said("--stage=s1_1_concept")


def test_help_says_everything(cli) -> None:  # noqa: F811
    code, out, _ = cli("plan", "--help")
    assert code == 0 and all(flag in out for flag in ("--gpus", "--gpu", "--mfu", "--json", "--picture", "--measure"))


def test_parameters_are_those_of_the_model_that_trains(toy) -> None:
    from mmframe.cli.data_job import component
    from mmframe.cli.lightning_cli import qualify
    from mmframe.cli.recipe import load_recipe
    from mmframe.experts import active_parameters
    from mmframe.freezing import freeze
    from mmframe.model import MultimodalLM

    for stage, planned in toy[0]["stages"].items():
        model = qualify(load_recipe(["toy/evip_pp"]).resolve(stage))["model"]
        model["patch_embedder"]["init_args"]["hidden_size"] = SMALL["hidden_size"]
        net = MultimodalLM(*(component(model[key]) for key in ("backbone", "patch_embedder", "router")), "torch")
        report = freeze(net, component(model["freezing"]).groups(net.router.experts))
        found = planned["parameters"]
        assert found["total"] == sum(p.numel() for p in net.parameters()) == report.total
        assert found["trainable"] == sum(p.numel() for p in net.parameters() if p.requires_grad)
        assert found["active"] == active_parameters(net)
        assert sum(part["total"] for part in found["by_component"].values()) == found["total"]


def test_steps_tokens_and_time_follow_from_the_recipe(toy) -> None:
    plan = toy[0]
    stage = plan["stages"]["s2_instruction"]
    run, rows = stage["run"], stage["rows"]
    assert (run["steps"], run["rows_a_step"], run["micro_batch"], run["accumulate"]) == (20, 8, 4, 1)
    assert rows["of_epoch"] == 256 and rows["known_from"] == "64 of 256 rows of the data"
    assert run["tokens"] == pytest.approx(20 * 8 * rows["tokens"])
    a_token = stage["flops"]["forward_a_token"] + stage["flops"]["backward_a_token"]
    assert run["flops"] == pytest.approx(run["tokens"] * a_token)
    assert run["gpu_hours"] == pytest.approx(run["flops"] / (0.4 * gpu("h100").flops) / 3600)
    assert plan["total"]["gpu_hours"] == pytest.approx(48 * plan["total"]["days"])
    assert plan["total"]["flops"] == pytest.approx(sum(s["run"]["flops"] for s in plan["stages"].values()))


def test_the_table_has_every_part(toy) -> None:
    out = toy[1]
    for word in ("ffn, visual", "GPU-hours", "loader cores", "single", "every layer", "fits", "roofline", "assumed"):
        assert word in out, word
    assert "s1_2_semantic" not in out


def test_every_gpu_has_its_source_and_the_loader_rate_is_the_measured_one() -> None:
    for name in ("a100", "h100", "h200", "cpu"):
        unit = gpu(name)
        assert unit.source and unit.flops > 1e11 and unit.memory >= 4e9 and unit.bandwidth >= 1e10
    measured = json.loads((ROOT / "experiments/results/data_loading.json").read_text())["offline corpus, 6 tiles"]
    rate = 1e3 * measured["tiles a record"] / measured["milliseconds a record"]["all of it"]
    assert tiles_of_a_core() == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu=h10"], "--gpu 'h10' is not in"),
        (["--gpus=0"], "must be a whole number of at least 1"),
        (["--mfu=40"], "must be a share"),
        (["--strategy=fsdp3"], "did you mean 'fsdp'?"),
        (["--picture=640"], "WIDTHxHEIGHT"),
        (["--gpuz=8"], "unknown flag --gpuz"),
        (["--stage=s9"], "no stage is called 's9'"),
        (["--gpus=3"], "do not divide over 3 GPUs"),
        (["--trainer.max_steps=-1"], "the number of steps is not known"),
    ],
)
def test_mistakes_are_one_line(fails, words: list[str], told: str) -> None:  # noqa: F811
    stage = [] if words[0].startswith("--stage") else ["--stage=s1_1_concept"]
    assert told in fails("plan", "--config", "toy/evip_pp", *stage, *words)


def test_a_recipe_must_be_named(fails) -> None:  # noqa: F811
    assert "which recipe?" in fails("plan", "--gpus", "2")


def test_a_recipe_without_stages_is_one_stage(cli) -> None:  # noqa: F811
    code, out, _ = cli("plan", "--config", "toy/dense", "--json")
    assert code == 0 and list(json.loads(out)["stages"]) == [""]
