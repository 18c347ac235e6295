"""A checkpoint of every release: it loads, gives the numbers that it gave then, and its run goes on."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import mmframe
from mmframe.loading import from_pretrained

from .make_release import FOLDER, WORDS, logits

RELEASES = sorted(path.name for path in FOLDER.glob("v*"))


def test_this_version_has_one():
    assert f"v{mmframe.__version__}" in RELEASES, "run `python -m tests.faults.make_release` and commit what it makes"


@pytest.mark.parametrize("release", RELEASES)
def test_it_answers_and_goes_on_as_it_did_then(release, cli, elsewhere):
    shutil.copytree(FOLDER / release, elsewhere, dirs_exist_ok=True)
    then = load_file(elsewhere / "logits.safetensors")["logits"]
    torch.testing.assert_close(logits(from_pretrained(elsewhere / "weights.safetensors")), then, rtol=1e-4, atol=1e-4)
    code, _, err = cli(*WORDS, "--checkpoint_every=2")
    assert code == 0 and "continues from run/checkpoints/step-00000002.ckpt" in err, err
    one, other = load_file(elsewhere / "run" / "weights.safetensors"), load_file(elsewhere / "weights.safetensors")
    assert one.keys() == other.keys()
    for name in one:  # not to the bit: another machine adds in another order
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
