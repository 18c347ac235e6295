"""One run in this process: its directory, and the traps of LightningCLI that are closed."""

import json
import os
import signal
import sys

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from mmframe.callbacks.jsonl import read_metrics

from .conftest import QUICK

DENSE = ["fit", "--config", "toy/dense", *QUICK]


def config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def assert_same_weights(*folders):
    one, other = (load_file(folder / "weights.safetensors") for folder in folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run(cli):
    def call(*words):
        code, out, err = cli(*DENSE, *words)
        assert code == 0, err
        return out + err

    return call


def test_a_run_leaves_a_complete_directory(run, elsewhere):
    run()
    folder = elsewhere / "runs" / "toy" / "dense"
    names = {file.name for file in folder.iterdir() if not file.name.startswith(("events", "."))}
    assert {"recipe.yaml", "config.yaml", "meta.json", "metrics.jsonl", "weights.safetensors", "done.json"} <= names
    assert list(folder.glob("events.out.tfevents*"))
    done, meta = (json.loads((folder / f"{name}.json").read_text()) for name in ("done", "meta"))
    assert done["steps"] == 4 and done["recipe_hash"] == meta["recipe_hash"] and done["weights_id"]
    assert {"revision", "dirty", "versions", "seed", "attempts", "recipe"} <= meta.keys()
    assert meta["versions"]["torch"] == torch.__version__.partition("+")[0] and meta["recipe"] == "toy/dense"
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [1, 3]
    wanted = {"train/loss", "train/tokens_per_s", "train/image_token_share", "memory/peak_rss_gib"}
    assert wanted | {"grad_norm/text", "grad_norm/embedder"} <= rows[-1].keys()
    assert "lightning_logs" not in {path.name for path in elsewhere.iterdir()}
    assert "done, skipped" in run()  # the second time there is nothing to do


def test_a_saved_config_runs_again_and_gives_the_same_weights(run, cli, elsewhere):
    run("--run-dir=one")
    code, _, err = cli("fit", "--config", "one/config.yaml", "--run-dir=two")
    assert code == 0, err
    assert_same_weights(elsewhere / "one", elsewhere / "two")


def test_trap_a_class_swap_does_not_keep_arguments_of_the_same_name(run, elsewhere):
    # both embedders have image_size and patch_size; LightningCLI would keep those of the class before
    run("--model.patch_embedder={class_path: LinearPatchEmbedder, init_args: {patch_size: 8}}", "--run-dir=r",
        "--model.patch_embedder.image_size=32")  # fmt: skip
    saved = config(elsewhere / "r")["model"]["patch_embedder"]
    assert saved["init_args"]["patch_size"] == 8 and "channels" not in saved["init_args"]


def test_trap_flags_before_config_are_not_lost(cli, elsewhere):
    flags = ["--trainer.max_steps=2", "--model.optim.warmup_steps=1"]
    assert cli("fit", *flags, "--config", "toy/dense", *QUICK[1:], "--run-dir=r")[0] == 0
    assert config(elsewhere / "r")["trainer"]["max_steps"] == 2
    assert config(elsewhere / "r")["model"]["optim"]["init_args"]["warmup_steps"] == 1


def test_trap_hyperparameters_of_a_checkpoint_do_not_win(run, elsewhere):
    run("--run-dir=one", "--checkpoint_every=2")
    checkpoint = elsewhere / "one/checkpoints/last.ckpt"
    stored = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["freezing"]
    assert stored["init_args"]["text_lr"] == 5e-4
    run("--run-dir=two", f"--ckpt_path={checkpoint}", "--trainer.max_steps=6", "--model.freezing.text_lr=0.5")
    saved = config(elsewhere / "two")["model"]
    assert saved["freezing"]["init_args"]["text_lr"] == 0.5


def test_traps_collectives_are_not_touched(run, monkeypatch):
    from lightning.pytorch import Trainer

    def forbidden(self):
        raise AssertionError("must not be read: it makes the dataloaders early, and their saved state is lost")

    log_dir = Trainer.log_dir.fget

    def for_lightning_only(self):
        caller = sys._getframe(1).f_globals["__name__"]
        assert caller.startswith("lightning."), (
            f"{caller} reads log_dir, a collective, which one rank alone must not do"
        )
        return log_dir(self)

    monkeypatch.setattr(Trainer, "estimated_stepping_batches", property(forbidden))
    monkeypatch.setattr(Trainer, "log_dir", property(for_lightning_only))
    run()


def test_traps_metrics_are_appended_and_configs_do_not_clash(run, elsewhere):
    folder = elsewhere / "r"
    run("--run-dir=r")
    before = (folder / "metrics.jsonl").read_text()
    first = (folder / "config.yaml").read_text()
    (folder / "done.json").unlink()
    run("--run-dir=r", "--trainer.max_steps=2")  # nothing to resume from: it starts over in the same directory
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    assert (folder / "config.yaml").read_text() == first
    assert yaml.safe_load((folder / "config.1.yaml").read_text())["trainer"]["max_steps"] == 2
    assert [row["attempt"] for row in read_metrics(folder)] == [2]
    attempts = json.loads((folder / "meta.json").read_text())["attempts"]
    assert [attempt["resumed"] for attempt in attempts] == [False, False]


def test_traps_validate_writes_nothing_and_there_is_no_automatic_optimizer(run, cli, fails, elsewhere):
    run("--run-dir=r")
    before = {file.name for file in (elsewhere / "r").iterdir()}
    code, out, err = cli("validate", *DENSE[1:], "--trainer.limit_val_batches=1", "--run-dir=r")
    assert code == 0 and "weights: r/weights.safetensors" in err and "val/loss" in out
    assert {file.name for file in (elsewhere / "r").iterdir()} == before
    assert {file.name for file in elsewhere.iterdir()} == {"r"}
    assert "unknown key 'optimizer'" in fails(*DENSE, "--optimizer=SGD")


def test_trap_a_file_named_like_a_class_is_not_read(run, elsewhere):
    (elsewhere / "SharedRouter").write_text("this: is not a router\n")
    run()


def test_mistakes_found_while_running_are_one_line(cli):
    for flag, message in (
        ("--model.init_from=none.safetensors", "none.safetensors does not exist"),
        ("--trainer.accelerator=abacus", "invalid accelerator name"),
        ("--trainer.logger=3", "logger"),
    ):
        code, _, err = cli(*DENSE, flag, "--run-dir=r")
        assert code == 2 and "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert last.startswith("mmframe: error:") and message in last


def test_a_recipe_may_bring_its_own_callbacks_and_logger(run, elsewhere):
    own = "{class_path: ModelCheckpoint, init_args: {dirpath: own, every_n_train_steps: 2}}"
    run(f"--trainer.callbacks=[{own}]", "--trainer.logger={class_path: lightning.pytorch.loggers.TensorBoardLogger, "
        "init_args: {save_dir: tb}}", "--run-dir=r")  # fmt: skip
    assert list((elsewhere / "own").glob("*.ckpt")) and not (elsewhere / "r" / "checkpoints").exists()
    assert (elsewhere / "r" / "metrics.jsonl").is_file() and (elsewhere / "tb").is_dir()


class StopAt(Callback):
    """Sends a signal to this process at the end of a batch."""

    def __init__(self, batch: int, name: str):
        self.batch, self.name = batch, name

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            os.kill(os.getpid(), getattr(signal, self.name))


def stop_at(batch, name):
    return f"--trainer.callbacks+={{class_path: {__name__}.StopAt, init_args: {{batch: {batch}, name: {name}}}}}"


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_a_checkpoint_and_tells_the_exit_code(cli, elsewhere, name, code):
    found, _, err = cli(*DENSE, "--run-dir=r", stop_at(1, name))
    assert found == code and "the same command continues it" in err and "Traceback" not in err
    assert (elsewhere / "r/checkpoints/last.ckpt").exists() and not (elsewhere / "r/done.json").exists()
    code, _, err = cli(*DENSE, "--run-dir=r", stop_at(1, name))
    assert code == 0 and "was cut off; continues from" in err
    assert cli(*DENSE, "--run-dir=whole")[0] == 0
    assert_same_weights(elsewhere / "r", elsewhere / "whole")


def test_a_stop_between_the_micro_batches_of_a_step_keeps_the_checkpoint_before(cli, elsewhere):
    words = [*DENSE, "--run-dir=r", "--trainer.accumulate_grad_batches=2", "--checkpoint_every=1"]
    assert cli(*words, stop_at(2, "SIGTERM"))[0] == 143  # the third micro-batch: half of the second step
    saved = torch.load(elsewhere / "r/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 1


def test_fast_dev_run_leaves_no_result(cli, elsewhere):
    code, _, err = cli(*DENSE, "--trainer.fast_dev_run=true", "--run-dir=r")
    assert code == 0, err
    assert not (elsewhere / "r" / "done.json").exists() and not (elsewhere / "r" / "weights.safetensors").exists()


def test_two_processes_cannot_share_a_directory(run, elsewhere, cli):
    from mmframe.cli.run_dir import RunDir

    with RunDir(elsewhere / "r").locked():
        code, _, err = cli(*DENSE, "--run-dir=r")
    assert code == 2 and "is running here" in err
    run("--run-dir=r")
