"""Memory of a plan beside what a real training on the CPU took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.bench.allocations import peak_bytes
from mmframe.batch import Batch
from mmframe.objectives import NextToken
from mmframe.planning.memory import STRATEGIES, USABLE, ModelBytes
from mmframe.planning.trace import trace_step
from tests.helpers import fit, row
from tests.plan.models import LARGE, MEDIUM, POLICIES, meta_net, module, rows

DTYPES = {"bf16-true": torch.bfloat16, "32-true": torch.float32}


def planned(sizes: dict[str, int], stage: str, precision: str, count: int) -> float:
    net, report = meta_net(sizes, POLICIES[stage], DTYPES[precision])
    trace = trace_step(net, NextToken(), rows(count), "cpu")
    return ModelBytes.of(net, report).need("single", 1, trace).total


def train(sizes: dict[str, int], stage: str, precision: str, count: int) -> None:
    """The real Trainer and optimiser; the state of the optimiser is there from the second step on."""
    fit(module(sizes, POLICIES[stage]), [rows(count)] * 3, precision=precision, gradient_clip_val=1.0)


@pytest.mark.parametrize(("stage", "precision"), [("S1.1", "bf16-true"), ("S1.3", "32-true"), ("S2", "32-true")])
def test_the_peak_is_that_of_a_real_training_on_the_cpu(stage: str, precision: str) -> None:
    took = peak_bytes(lambda: train(MEDIUM, stage, precision, 8), torch.device("cpu"))
    assert planned(MEDIUM, stage, precision, 8) == pytest.approx(took, rel=0.15)


RESIDENT = """
import sys
import torch
from tests.plan.models import LARGE, SMALL
from tests.plan.test_memory import train

def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

train(SMALL, sys.argv[1], "32-true", 2)  # what is imported and allocated once
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts anew
train(LARGE, sys.argv[1], "32-true", 24)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("stage", ["S1.1", "S2"])
def test_the_resident_memory_of_a_process_grows_by_what_was_planned(stage: str) -> None:
    """60 million parameters; large blocks go back to the system at once, so that the heap's habits do not count."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", RESIDENT, stage], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert planned(LARGE, stage, "32-true", 24) == pytest.approx(int(done.stdout.split()[-1]), rel=0.15)


def test_strategies_share_out_what_they_say() -> None:
    net, report = meta_net(MEDIUM, POLICIES["S2"], torch.bfloat16)
    size = sum(p.numel() for p in net.parameters())
    bytes_ = ModelBytes.of(net, report)
    assert (bytes_.weights, bytes_.gradients, bytes_.optimizer) == (2 * size, 2 * size, 12 * size)
    trace = trace_step(net, NextToken(), rows(4), "cuda")
    need = {strategy: bytes_.need(strategy, 8, trace) for strategy in ("single", *STRATEGIES)}
    assert need["ddp"].total == need["single"].total + 2 * size
    assert need["zero1"].optimizer == need["zero2"].optimizer == need["fsdp"].optimizer == 12 * size / 8
    assert need["fsdp"].weights == need["fsdp"].gradients == 2 * size / 8 and need["zero2"].weights == 2 * size
    frozen = ModelBytes.of(*meta_net(MEDIUM, POLICIES["S1.1"], torch.bfloat16))
    trained = meta_net(MEDIUM, POLICIES["S1.1"], torch.bfloat16)[1].trainable
    assert (frozen.weights, frozen.gradients, frozen.optimizer) == (2 * size, 2 * trained, 12 * trained)


@pytest.mark.parametrize("strategy", ["single", *STRATEGIES])
def test_the_largest_micro_batch_fits_and_a_larger_one_does_not(strategy: str) -> None:
    net, report = meta_net(MEDIUM, POLICIES["S2"], torch.bfloat16)
    bytes_, traces = ModelBytes.of(net, report), []
    for checkpointed in (False, True):
        traces.append(trace_step(net, NextToken(), rows(4), "cuda", checkpointed))
    memory = 2e9
    for trace in traces:
        most = bytes_.largest(strategy, 8, trace, memory)
        assert bytes_.need(strategy, 8, trace, most).total <= USABLE * memory
        assert bytes_.need(strategy, 8, trace, 1.01 * most).total > USABLE * memory
    assert bytes_.largest(strategy, 8, traces[1], memory) > bytes_.largest(strategy, 8, traces[0], memory)
    assert bytes_.largest(strategy, 8, traces[0], 1e6) == 0


def test_memory_is_linear_in_the_rows_of_a_micro_batch() -> None:
    """So that one traced micro-batch tells what larger ones take."""
    net, report = meta_net(MEDIUM, POLICIES["S2"], torch.bfloat16)
    bytes_ = ModelBytes.of(net, report)
    one = row("[ii]" + "t" * 14 + "T" * 16, image_size=112, per_tile=16)
    few, many = (trace_step(net, NextToken(), Batch.collate([one] * count), "cuda") for count in (8, 32))
    for strategy in STRATEGIES:
        need = bytes_.need(strategy, 8, few, 4).total
        assert bytes_.need(strategy, 8, many).total == pytest.approx(need, rel=0.05)
