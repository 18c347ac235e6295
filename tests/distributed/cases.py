"""What the two ranks do. Runs go through the command line's own `main`, as `torchrun -m mmframe` enters it."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from components.freezing.delta_tuning import Everything, VisualParameters
from mmframe import tensor_parallel
from mmframe.cli.main import main
from mmframe.module import MultimodalModule
from mmframe.sharding import is_sharded, whole
from mmframe.strategies import FullySharded
from tests.helpers import QKV_FFN, all_logits, fit, mixed_batch, tiny_module, tiny_net
from tests.model.ranks import STEPS, ranked_module

COMMON = [
    "--trainer.max_steps=5",
    "--checkpoint_every=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
]
TWO = ["--trainer.devices=2", "--data.batch_size=4"]
"""Half of a batch for each rank: the global batch is that of one process."""
FP32 = ["--trainer.precision=32-true"]


def run(name: str, *words: str, recipe: str = "toy/evip_pp") -> None:
    code = main(["fit", "--config", recipe, f"--run-dir={name}", "--in-process", *COMMON, *words])
    assert code == 0, f"{name}: exit code {code}"


def stage(name: str, *words: str) -> list[str]:
    return [f"--stage={name}", "--model.init_from=null", *words]


FIRST = stage("s1_1_concept")
LAST = stage("s2_instruction")
LORA = [
    "--model.adapter=LoRA", "--model.adapter.rank=4", "--model.freezing=LoRAParameters", "--model.freezing.lr=1e-3",
    "--model.freezing.embedder_lr=1e-3",
]  # fmt: skip
TEACHER = [
    '--model.auxiliary={"teacher": {"class_path": "TeacherFeatures", "init_args": {"teacher": "test_vit", '
    '"pretrained": false, "teacher_args": {"img_size": 32}, "lr": 1e-3}}}'
]
RUNS: dict[str, list[str]] = {
    "ddp": [*FIRST, *FP32, "--config=strategies/ddp"],
    "fsdp2": [*FIRST, *FP32, "--config=strategies/fsdp2"],
    "fsdp2_all": [
        *LAST,
        *FP32,
        "--config=strategies/fsdp2",
        "--model.objective=NextToken",
        "--model.objective.chunk=7",
    ],
    "fsdp2_lora": ["--config=strategies/fsdp2_one_file", *FP32, *LORA],
    "fsdp2_file_bf16": [*LAST, "--config=strategies/fsdp2_one_file"],
    "fsdp2_teacher": [*FIRST, *FP32, "--config=strategies/fsdp2", *TEACHER],
    "ddp_bf16": [*FIRST, "--config=strategies/ddp"],
    "zero1_bf16": [*FIRST, "--config=strategies/zero1"],
    "fsdp2_bf16": [*FIRST, "--config=strategies/fsdp2"],
}
if find_spec("deepspeed"):
    RUNS["deepspeed"] = [*FIRST, *FP32, "--config=strategies/deepspeed_zero1"]
"""Name -> words. Of each there is the same run of one process, `alone_NAME`, where it is compared with one."""
RESUMED = ["zero1_bf16", "fsdp2_bf16", "fsdp2_file_bf16", *(["deepspeed"] if "deepspeed" in RUNS else [])]


def recipe_of(name: str) -> str:
    return "toy/dense" if "lora" in name else "toy/evip_pp"


def command_line(rank: int, folder: Path) -> None:
    """Every strategy through the command line; then those of RESUMED as if they had been killed after step 3."""
    for name, words in RUNS.items():
        run(name, *words, *TWO, recipe=recipe_of(name))
    for name in RESUMED:
        if rank == 0:
            shutil.copytree(folder / name, folder / f"{name}_resumed")
            for done in (folder / f"{name}_resumed").rglob("done.json"):
                done.unlink()
        torch.distributed.barrier()
        run(f"{name}_resumed", *RUNS[name], *TWO, recipe=recipe_of(name))


def from_the_middle(rank: int, folder: Path) -> None:
    """A checkpoint of shards, and one of one file, as the start of another stage."""
    for name in ("fsdp2_bf16/s1_1_concept", "fsdp2_lora"):
        words = [f"--model.init_from={folder / name / 'checkpoints/last.ckpt'}", "--trainer.max_steps=1"]
        run(f"after_{name.split('/')[0]}", *RUNS["ddp"][:1], *words, "--trainer.strategy=ddp", *TWO)
    last = f"--ckpt_path={folder / 'fsdp2_lora/checkpoints/last.ckpt'}"
    run("moved", *FP32, *LORA, "--trainer.strategy=ddp", last, *TWO, recipe="toy/dense")


class Recording(MultimodalModule):
    """Keeps whole gradients with which the optimiser steps."""

    recorded: list[dict[str, Tensor]]

    def on_fit_start(self) -> None:
        self.recorded = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        named = [(n.removeprefix("net."), p.grad) for n, p in self.named_parameters() if p.grad is not None]
        self.recorded.append({name: grad.detach().clone() for name, grad in whole(named)})


def any_mix(rank: int, folder: Path) -> dict[str, Any]:
    """P17 and P21 with shards: text-only, image-only, empty and mixed micro-batches, one step after another."""
    made: dict[str, Any] = {}
    for name, policy in {"visual": VisualParameters(1e-2, 1e-2), "all": Everything(1e-2, 1e-2, 1e-2)}.items():
        module = tiny_module(QKV_FFN, freezing=policy, module_class=Recording)
        assert isinstance(module, Recording)
        fit(module, [step[rank] for step in STEPS], devices=2, strategy=FullySharded())
        assert is_sharded(module.net)
        weights = dict(whole(module.net.state_dict().items()))
        shares = sum(p.to_local().numel() for p in module.net.parameters())  # type: ignore[attr-defined]
        made[name] = {"weights": weights, "gradients": module.recorded, "share": shares}
    return made


def accumulated(rank: int, folder: Path) -> list[dict[str, Tensor]]:
    """P21: the same, two micro-batches a step, with an auxiliary loss that has a head, and recomputed layers."""
    import tests.model.ranks as peers

    peers.Recording = Recording  # type: ignore[misc]
    module = ranked_module("sqrt", True)
    module.recompute = True
    fit(module, [step[rank] for step in STEPS], devices=2, strategy=FullySharded(), accumulate_grad_batches=2)
    return module.recorded


QUESTIONS = [{"id": 1, "prompt": "hello"}, {"id": 2, "prompt": "a longer question"}, {"id": 3, "prompt": "x"}]


def answer(out: str, model: str, *words: str) -> None:
    code = main(["generate", "--data=in.jsonl", f"--out={out}", f"--model={model}", "--max-new-tokens=6", *words])
    assert code == 0, code


def answered(rank: int, folder: Path) -> None:
    """`mmframe generate` with the model spread over both ranks; the second time it goes on after a kill."""
    os.environ["WORLD_SIZE"] = "2"  # Lightning takes it away at the end of a run
    if rank == 0:
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    torch.distributed.barrier()
    answer("two.jsonl", "ddp/s1_1_concept", "--batch-size=2")
    if rank == 0:
        lines = (folder / "two.jsonl").read_text().splitlines(keepends=True)
        (folder / "cut.jsonl").write_text(lines[0] + lines[1][:5])
        shutil.copy(folder / "two.jsonl.meta.json", folder / "cut.jsonl.meta.json")
    torch.distributed.barrier()
    answer("cut.jsonl", "ddp/s1_1_concept", "--batch-size=2")


def spread_model(rank: int, folder: Path) -> dict[str, Any]:
    """Logits and answers of a model that is spread over both ranks."""
    mesh = init_device_mesh("cpu", (2,))
    net = tiny_net(QKV_FFN, distinct=True).eval()
    tensor_parallel.spread(net, mesh)
    return {"logits": all_logits(net, mixed_batch()), "parameters": sum(p.numel() for p in net.parameters())}


CASES = [
    ("any_mix", any_mix),
    ("accumulated", accumulated),
    ("command_line", command_line),
    ("from_the_middle", from_the_middle),
    ("spread_model", spread_model),
    ("answered", answered),  # last: it leaves WORLD_SIZE behind
]
