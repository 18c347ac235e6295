"""Metrics that are only appended to; the progress line; where a parameter's gradient is counted."""

import io
import json
import math
from types import SimpleNamespace

import pytest
import torch

from mmframe.callbacks.jsonl import JsonlLogger, read_metrics
from mmframe.callbacks.progress import StageProgress, clock, short
from mmframe.callbacks.throughput import gradient_norms, part_of
from mmframe.cli.job import Handover

from .conftest import QUICK


def test_lines_are_appended_and_a_cut_off_line_is_ended(tmp_path):
    first = JsonlLogger(tmp_path)
    for step in range(4):
        first.log_metrics({"loss": torch.tensor(float(step))}, step)
    file = tmp_path / "metrics.jsonl"
    with open(file, "a") as stream:
        stream.write('{"step": 4, "lo')  # killed here; the checkpoint was at step 2
    second = JsonlLogger(tmp_path)
    for step in (2, 3, 4):
        second.log_metrics({"loss": 10.0 + step}, step)
    second.log_metrics({"val": 1}, 4)
    lines = file.read_text().splitlines()
    assert len(lines) == 9 and lines[4] == '{"step": 4, "lo'
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["loss"], row["attempt"]) for row in rows] == [
        (0, 0, 1), (1, 1, 1), (2, 12, 2), (3, 13, 2), (4, 14, 2)
    ]  # fmt: skip
    assert rows[-1]["val"] == 1


def test_numbers_that_json_has_not_are_kept(tmp_path):
    JsonlLogger(tmp_path).log_metrics({"loss": math.nan, "norm": math.inf}, 0)
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert math.isnan(float(row["loss"])) and float(row["norm"]) == math.inf
    assert read_metrics(tmp_path / "nothing.jsonl") == []


class FakeTrainer:
    global_step = 37
    max_steps = 200
    world_size = 1
    progress_bar_metrics = {"train/loss": torch.tensor(2.3111)}


def test_the_line_tells_stage_and_chain():
    progress = StageProgress(Handover(stage="s1_2", index=2, count=4, steps_before=200, steps_total=800))
    progress.stream = io.StringIO()
    trainer = FakeTrainer()
    progress.on_train_start(trainer, None)
    progress._from, progress._begun, progress._tokens, progress._image = 17, 0.0, 24_000, 8_000
    line = progress.line(trainer, 20.0)
    assert line == "[2/4 s1_2]  37/200  loss 2.311  1.2k tok/s  33% image  2:43 left  chain 30%"
    trainer.datamodule = SimpleNamespace(num_bad=1234)  # records that could not be used
    assert progress.line(trainer, 20.0) == line.replace("  2:43 left", "  1,234 bad  2:43 left")


def test_short_numbers_and_times():
    assert [short(x) for x in (0, 950, 1234, 34_000, 1_250_000)] == ["0", "950", "1.2k", "34k", "1.2M"]
    assert [clock(x) for x in (0, 41, 725, 12_000, -1)] == ["0:00", "0:41", "12:05", "3:20:00", "0:00"]


@pytest.mark.parametrize(
    "name, part",
    [
        ("net.backbone.layers.3.ffn.visual.up.weight", "experts"),
        ("net.backbone.layers.3.q.visual.weight", "experts"),
        ("net.backbone.layers.3.q.text.weight", "text"),
        ("net.backbone.embedding.weight", "text"),
        ("net.patch_embedder.conv.weight", "embedder"),
        ("objective.head.weight", "objective"),
    ],
)
def test_parts(name, part):
    assert part_of(name) == part


def test_gradient_norms_per_part():
    module = torch.nn.Module()
    module.net = torch.nn.Module()
    module.net.patch_embedder = torch.nn.Linear(2, 2, bias=False)
    module.net.patch_embedder.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    module.net.frozen = torch.nn.Linear(2, 2)
    assert gradient_norms(module) == {"embedder": torch.tensor(5.0)}


def test_a_log_file_gets_whole_lines(cli, elsewhere):
    words = [word for word in QUICK if "progress" not in word]
    code, _, err = cli("fit", "toy/evip", "--stage=s1_1_concept", *words)
    assert code == 0, err
    lines = [line for line in err.splitlines() if line.startswith("[1/4 s1_1_concept]  4/4  loss ")]
    assert len(lines) == 1 and "chain 25%" in lines[0] and "\r" not in err
    experts = read_metrics(elsewhere / "runs/toy/evip/s1_1_concept")[-1]
    assert experts["grad_norm/experts"] > 0 and "grad_norm/text" not in experts
