"""A recipe with auxiliary losses: checked, listed, run; heads stay in the Trainer's checkpoint."""

import torch
from safetensors.torch import load_file

from mmframe.callbacks.jsonl import read_metrics

from .conftest import QUICK

KEEP = ["--run-dir=run", "--checkpoint_every=2"]
RECIPE = """
base: toy/dense
model:
  router: {class_path: TopKRouter, init_args: {num_experts: 2, top_k: 1}}
  freezing: {class_path: VisualParameters, init_args: {embedder_lr: 1e-3, experts_lr: 1e-3}}
  auxiliary:
    balance: {class_path: LoadBalance}
    teacher:
      class_path: TeacherFeatures
      init_args: {teacher: test_vit, layers: "0", pretrained: false, teacher_args: {img_size: 32}}
"""


def test_it_runs_and_hands_on_the_model_alone(cli, elsewhere):
    (elsewhere / "mine.yaml").write_text(RECIPE)
    code, _, err = cli("fit", "--config", "mine.yaml", *QUICK, "--model.auxiliary.balance.weight=0.1", *KEEP)
    assert code == 0, err
    last = {}
    for line in read_metrics(elsewhere / "run" / "metrics.jsonl"):
        last |= line
    assert {"train/aux/balance", "train/aux/teacher", "train/aux/balance/expert_0", "train/loss"} <= last.keys()
    assert not [name for name in load_file(elsewhere / "run" / "weights.safetensors") if "auxiliary" in name]
    state = torch.load(next((elsewhere / "run").rglob("*.ckpt")), weights_only=False)["state_dict"]
    own = [name for name in state if name.startswith("auxiliary.")]
    assert own and all(name.startswith("auxiliary.teacher.heads.") for name in own)
    assert "weight: 0.1" in (elsewhere / "run" / "config.yaml").read_text()


def test_mistakes_in_it_are_told_before_anything_is_loaded(fails, elsewhere):
    (elsewhere / "mine.yaml").write_text(RECIPE)

    def told(flag):
        return fails("fit", "--config", "mine.yaml", "--dry-run", flag)

    assert "LoadBalance has no argument 'wieght'; did you mean 'weight'" in told("--model.auxiliary.balance.wieght=1")
    assert "'LoadBalanc' is not a known auxiliary; did you mean 'LoadBalance'" in told(
        "--model.auxiliary={b: {class_path: LoadBalanc}}"
    )
    assert "SharedRouter is a router, not a" in told("--model.auxiliary={b: SharedRouter}")


def test_they_are_listed_and_shown(cli):
    code, out, _ = cli("components", "ls", "auxiliary")
    assert code == 0 and "LoadBalance" in out and "TeacherFeatures" in out
    code, out, _ = cli("components", "show", "TeacherFeatures")
    assert code == 0 and "in a recipe, under model.auxiliary:\n  NAME: {class_path: TeacherFeatures" in out
