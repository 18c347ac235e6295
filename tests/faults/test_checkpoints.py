"""Checkpoints: whole or not there, known when they are damaged, kept as asked, written beside training."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmframe.callbacks.jsonl import read_metrics
from mmframe.checkpoint_files import SUMS, damage, newest_whole, seal, step_name
from mmframe.checkpoint_io import CheckpointWriter, write
from mmframe.errors import UserError

from .support import DENSE, assert_same_weights, callback

STOP = callback("KillAt", step=5, name="SIGTERM", once="stopped")
WORDS = [*DENSE, "--trainer.max_steps=7", "--checkpoint_every=2", STOP]


def content(step: int) -> dict:
    return {"global_step": step, "state_dict": {f"w{n}": torch.full((60_000,), float(step)) for n in range(3)}}


def _write_on(folder: Path, first: int) -> None:
    torch.set_num_threads(1)
    for step in range(first, first + 1000):
        write(content(step), folder / step_name(step))


def test_a_kill_at_any_moment_of_a_write_leaves_the_checkpoint_before(tmp_path):
    draws, first = random.Random(0), 1
    for _ in range(8):
        process = get_context("fork").Process(target=_write_on, args=(tmp_path, first))
        process.start()
        while not list(tmp_path.glob(f"step-{first:08d}.ckpt")):
            assert process.is_alive()
        time.sleep(draws.uniform(0, 0.03))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        path, told = newest_whole(tmp_path)
        assert path is not None and told == []  # nothing half written ever had the name of a checkpoint
        saved = torch.load(path, weights_only=True)
        assert path.name == step_name(saved["global_step"])
        first = saved["global_step"] + 1


def test_a_file_cut_off_or_changed_anywhere_is_known(tmp_path):
    write(content(1), tmp_path / step_name(1))
    whole, draws = (tmp_path / step_name(1)).read_bytes(), random.Random(1)
    broken = tmp_path / step_name(2)
    for _ in range(40):
        broken.write_bytes(whole[: draws.randrange(len(whole))])
        assert "cut off" in damage(broken) or "File is not" in damage(broken)
    with open(tmp_path / step_name(1), "rb"):
        data = whole.find(b"\0\0\x80?" * 100)  # inside of the tensors
    for _ in range(20):
        place = data + draws.randrange(60_000 * 4)
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draws.randrange(8)]) + whole[place + 1 :])
        assert "another checksum" in damage(broken)
    assert newest_whole(tmp_path) == (
        tmp_path / step_name(1), [f"{broken} is damaged: {damage(broken.with_name(broken.name + '.damaged'))}"]
    )  # fmt: skip


def test_a_folder_of_shards_is_judged_by_its_sums(tmp_path):
    folder = tmp_path / step_name(3)
    folder.mkdir()
    for name in ("meta.pt", "__0_0.distcp"):
        (folder / name).write_bytes(name.encode() * 100)
    assert "was not finished" in damage(folder)
    seal(folder)
    assert damage(folder) == "" and (folder / SUMS).is_file()
    (folder / "meta.pt").write_bytes(b"x" + b"meta.pt" * 100)
    assert "meta.pt in it is missing or has another size" in damage(folder)
    (folder / "meta.pt").write_bytes(b"n" + b"eta.pt" + b"meta.pt" * 99)
    assert "meta.pt in it has another checksum" in damage(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run without any fault."""
    from mmframe.cli.main import main

    folder = tmp_path_factory.mktemp("whole") / "r"
    assert main([*WORDS[:-1], f"--run-dir={folder}"]) == 0
    return folder


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(cli, elsewhere, whole):
    words = [*WORDS, "--run-dir=r"]
    assert cli(*words)[0] == 143
    folder = elsewhere / "r" / "checkpoints"
    assert {f.name for f in folder.iterdir()} == {"step-00000004.ckpt", "step-00000005.ckpt", "last.ckpt"}
    newest = folder / "step-00000005.ckpt"
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 3])
    code, _, err = cli(*words)
    assert code == 0, err
    told = [line for line in err.splitlines() if "damaged" in line]
    assert len(told) == 1 and "step-00000005.ckpt is damaged: cut off" in told[0] and "the one before it" in told[0]
    assert "continues from r/checkpoints/step-00000004.ckpt" in err
    assert (folder / "step-00000005.ckpt.damaged").stat().st_size == len(data) // 3
    assert_same_weights(elsewhere / "r", whole)


def test_when_none_is_whole_nothing_is_lost_and_it_is_said(cli, elsewhere, fails):
    words = [*WORDS, "--run-dir=r"]
    assert cli(*words)[0] == 143
    for path in (elsewhere / "r/checkpoints").glob("step-*"):
        path.write_bytes(path.read_bytes()[:-1000])
    for _ in range(2):  # it is not taken for a run that never began
        line = fails(*words)
        assert line.count("is damaged") == 2 and "none is whole" in line and "--force" in line
    assert len(list((elsewhere / "r/checkpoints").glob("step-*.ckpt"))) == 2
    other = elsewhere / "x.ckpt"
    other.write_bytes(b"PK no checkpoint")
    code, _, err = cli(*WORDS[:-1], "--run-dir=s", f"--ckpt_path={other}")
    assert code == 2 and "x.ckpt is damaged" in err and "Traceback" not in err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(cli, elsewhere, whole):
    disk = elsewhere / "r" / "checkpoints"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        words = [*WORDS[:-2], "--checkpoint_every=1", "--checkpoints.keep_every=1", "--run-dir=r"]
        code, _, err = cli(*words)
        assert code == 2 and "Traceback" not in err
        line = err.strip().splitlines()[-1]
        assert "the disk is full" in line and "MiB needed" in line and "make room" in line
        path, damaged = newest_whole(disk)
        assert path is not None and not damaged and (disk / "last.ckpt").resolve() == path
        assert not (elsewhere / "r" / "done.json").exists() and not list(disk.glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        code, _, err = cli(*words)
        assert code == 0 and f"continues from r/checkpoints/{path.name}" in err
        assert_same_weights(elsewhere / "r", whole)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_stays_follows_the_keys(cli, elsewhere):
    code, _, err = cli(
        *(word for word in DENSE if "limit_val" not in word), "--trainer.max_steps=8", "--checkpoint_every=1",
        "--checkpoints={keep_last: 2, keep_every: 3, best: val/loss, keep_best: 2}", "--trainer.val_check_interval=2",
        "--trainer.limit_val_batches=1", "--run-dir=r",
    )  # fmt: skip
    assert code == 0, err
    names = {path.name for path in (elsewhere / "r/checkpoints").iterdir()}
    assert {n for n in names if n.startswith("step")} == {f"step-{n:08d}.ckpt" for n in (3, 6, 7, 8)}
    assert os.readlink(elsewhere / "r/checkpoints/last.ckpt") == "step-00000008.ckpt"
    losses = {row["step"] + 1: row["val/loss"] for row in read_metrics(elsewhere / "r") if "val/loss" in row}
    assert len(losses) == 4
    best = sorted(losses, key=losses.__getitem__)[:2]
    assert {n for n in names if n.startswith("best")} == {f"best-{n:08d}.ckpt" for n in best}


def test_in_the_background_one_is_written_at_a_time_and_the_end_waits(cli, elsewhere, whole, monkeypatch):
    from mmframe import checkpoint_io

    running, most, done = [], [], []

    def slow(checkpoint, path):
        running.append(path)
        most.append(len(running))
        time.sleep(0.05)
        write(checkpoint, path)
        done.append(path.name)
        running.remove(path)

    monkeypatch.setattr(checkpoint_io, "write", slow)
    words = [*WORDS[:-2], "--checkpoint_every=1", STOP, "--checkpoints.background=true", "--run-dir=r"]
    assert cli(*words)[0] == 143
    assert not running and done[-1] == "step-00000005.ckpt" and max(most) == 1
    assert (elsewhere / "r/checkpoints/last.ckpt").resolve().name == "step-00000005.ckpt"
    assert cli(*words)[0] == 0 and max(most) == 1
    assert_same_weights(elsewhere / "r", whole)


def test_an_error_in_the_background_is_told_and_what_it_copies_does_not_change(tmp_path):
    writer, tensor = CheckpointWriter(background=True), torch.zeros(1000)
    writer.save_checkpoint({"t": tensor}, tmp_path / "a.ckpt")
    tensor += 1
    writer.then(lambda: (tmp_path / "after").touch())
    writer.join()
    assert not torch.load(tmp_path / "a.ckpt")["t"].any() and (tmp_path / "after").exists()
    (tmp_path / "file").touch()
    told = []
    writer.save_checkpoint({"t": tensor}, tmp_path / "file" / "b.ckpt")  # not a folder
    writer.then(lambda: told.append("written"))
    with pytest.raises(OSError):
        writer.join()
    writer.teardown()
    assert told == []
    with pytest.raises(UserError, match="does not exist"):
        writer.load_checkpoint(tmp_path / "none.ckpt")


def test_checkpoint_and_weights_say_what_they_come_from(whole):
    saved = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)
    with safe_open(whole / "weights.safetensors", "pt") as file:
        weights = json.loads(file.metadata()["run"])
    for told in (saved["mmframe"], weights):
        assert {"recipe", "recipe_hash", "revision", "dirty", "versions", "seed", "command", "data"} <= told.keys()
        assert "max_steps: 7" in told["config"] and "ByteTokenizer" in told["config"]
    assert saved["global_batch"] == {"world_size": 1, "batch_size": 4, "accumulate": 1}
