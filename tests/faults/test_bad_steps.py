"""A loss or gradient that is not finite, a loss that jumps: nothing is learnt from it, and it can be looked at."""

from __future__ import annotations

import json

import pytest
import torch

from .support import DENSE, assert_same_weights, callback, objective

WEIGHT = "backbone.layers.1.ffn.text.up.weight"
STEPS = "--trainer.max_steps=6"


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(cli, elsewhere):
    words = [*DENSE, STEPS, "--run-dir=r", "--checkpoint_every=1", callback("HugeWeight", step=4, name=WEIGHT)]
    code, _, err = cli(*words)
    assert code == 2 and "Traceback" not in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("mmframe: error: step 4: the loss is ") and "samples toy-0:12, toy-0:13" in line
    assert "the weights were not touched" in line and "`mmframe replay r`" in line
    folder = elsewhere / "r" / "faults" / "step-00000004"
    kept = torch.load(folder / "weights.ckpt", weights_only=True)["state_dict"]
    before = torch.load(elsewhere / "r/checkpoints/last.ckpt", weights_only=True)
    assert before["global_step"] == 3
    same = {k: torch.equal(v, kept[k]) for k, v in before["state_dict"].items()}
    assert [k for k, equal in same.items() if not equal] == [f"net.{WEIGHT}"]  # what the test itself did
    code, out, err = cli("replay", "r")
    assert code == 0, err
    assert "weights: finite" in out and "loss nan" in out.lower() and "its input was finite" in out
    assert f"the first that is not finite is {WEIGHT.removesuffix('.weight')} (" in out
    assert not (elsewhere / "r" / "done.json").exists()


def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops_as_well(cli, elsewhere):
    code, _, err = cli(*DENSE, STEPS, "--run-dir=r", objective("RootOfNothing", row="toy-0:5"))
    assert code == 2 and "step 2: the loss is " in err and "its gradient not finite" in err
    about = json.loads((elsewhere / "r/faults/step-00000002/about.json").read_text())
    assert about["gradients_not_finite"]
    code, out, _ = cli("replay", "r", "--step", "2")
    assert code == 0 and "every output was finite: what comes after it makes the gradient" in out


def test_a_step_that_is_skipped_leaves_weights_and_optimiser_as_they_were(cli, elsewhere):
    words = [*DENSE, "--checkpoint_every=1", "--checkpoints.keep_every=1", "--faults.nonfinite=skip", STEPS]
    code, _, err = cli(*words, "--run-dir=r", objective("RootOfNothing", row="toy-0:5"))
    assert code == 0 and "step 2: the loss is" in err and "left out (1 so far)" in err
    one, two, three = (torch.load(elsewhere / f"r/checkpoints/step-{n:08d}.ckpt", weights_only=True) for n in (1, 2, 3))
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    assert not all(torch.equal(three["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    states = [c["optimizer_states"][0]["state"] for c in (one, two)]
    assert all(torch.equal(states[0][k]["exp_avg"], states[1][k]["exp_avg"]) for k in states[0])


def test_a_run_whose_every_step_is_skipped_stops(cli):
    rows = objective("RootOfNothing", row="toy-0:1")
    code, _, err = cli(
        *DENSE, "--faults.nonfinite=skip", "--trainer.max_steps=20", "--run-dir=r", rows, "--data.size=4"
    )
    assert code == 2 and "10 steps before it were left out as well" in err


LOUD = [
    *(*DENSE, "--trainer.max_steps=8", "--faults.spike_window=4"),
    objective("LoudRow", rows="[toy-0:20]"),  # in step 6
]


def test_a_jump_of_the_loss_is_told_or_stops_the_run(cli):
    code, _, err = cli(*LOUD, "--run-dir=warn", "--faults.spike=warn")
    assert code == 0 and err.count("times the median") == 1 and "step 6: the loss is" in err
    code, _, err = cli(*LOUD, "--run-dir=stop", "--faults.spike=stop")
    assert code == 2 and "step 6: the loss is" in err and "mmframe replay stop" in err


@pytest.mark.slow
def test_what_a_jump_is_judged_by_goes_on_with_a_run_that_was_stopped(cli, elsewhere):
    skip = [*LOUD, "--faults.spike=skip", "--checkpoint_every=5"]
    assert cli(*skip, "--run-dir=skip")[0] == 0
    cut = [*skip, "--run-dir=cut", callback("KillAt", step=5, name="SIGTERM", once="once")]
    assert cli(*cut)[0] == 143
    code, _, err = cli(*cut)
    assert code == 0 and "left out (1 so far)" in err
    assert_same_weights(elsewhere / "skip", elsewhere / "cut")
    code, _, err = cli(*LOUD, "--run-dir=off")
    assert code == 0 and "median" not in err


def test_mistakes_in_the_keys_are_one_line(fails):
    assert "faults.spike: 'jump' is not one of the allowed values" in fails(*DENSE, "--faults.spike=jump")
    assert "did you mean 'spike_window'?" in fails(*DENSE, "--faults.spikewindow=3")
    assert "checkpoints.keep_last: must be at least 2, got 1" in fails(*DENSE, "--checkpoints.keep_last=1")
    assert "checkpoints.background: expected bool, got 3" in fails(*DENSE, "--checkpoints.background=3")
