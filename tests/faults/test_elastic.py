"""Another number of ranks: every step has the rows that it would have had, and what cannot be so is refused."""

from __future__ import annotations

import pytest

from mmframe.callbacks.elastic import GlobalBatch, rescale
from mmframe.data.base import EpochSampler
from tests.faults.support import DENSE, callback

ROWS = 48


def steps(batch: GlobalBatch, start: tuple[int, int] | None, count: int) -> list[set]:
    """Rows of each optimiser step, over all ranks."""
    dealt = []
    for rank in range(batch.world_size):
        sampler = EpochSampler(ROWS, rank, batch.world_size)
        if start is not None:
            sampler.go_on(*start)
        rows: list = []
        while len(rows) < count * batch.batch_size * batch.accumulate:
            rows += list(sampler)
        dealt.append(rows)
    size = batch.batch_size * batch.accumulate
    return [{row for rows in dealt for row in rows[n * size : (n + 1) * size]} for n in range(count)]


@pytest.mark.parametrize("old, now", [((2, 4, 1), (1, 4, 2)), ((1, 4, 2), (2, 4, 1)), ((4, 2, 1), (2, 1, 4))])
@pytest.mark.parametrize("done", [1, 4, 6, 8])  # steps; an epoch has 6
def test_the_rows_of_every_step_stay(old, now, done):
    old, now = GlobalBatch(*old), GlobalBatch(*now)
    ready = (done - 1) % 6 + 1
    epoch = (done - 1) // 6
    micro = ready * old.accumulate
    counts = {"ready": micro, "started": micro, "processed": micro, "completed": micro - 1}
    total = {k: v + epoch * 6 * old.accumulate for k, v in counts.items()}
    loader = {"facts": {}, "_sampler": {"it": {"epoch": epoch, "place": 99, "next_epoch": epoch + 1}}}
    fit = {
        "epoch_loop.batch_progress": {"current": counts, "total": total},
        "state_dict": {"combined_loader": [loader]},
    }
    seen = {"tokens": 8 * old.batch_size}
    checkpoint = {"loops": {"fit_loop": fit}, "callbacks": {"Throughput": seen}}
    rescale(checkpoint, old, now, ROWS)
    assert counts["ready"] == ready * now.accumulate and counts["completed"] == counts["ready"] - 1
    assert total["ready"] == done * now.accumulate
    assert seen["tokens"] * now.world_size == 8 * old.batch_size * old.world_size
    whole = steps(old, None, 14)
    assert steps(now, (loader["elastic"]["epoch"], loader["elastic"]["rows"]), 14 - done) == whole[done:]


def test_ranks_and_batches_that_make_another_step_are_refused(cli, elsewhere):
    stop = callback("KillAt", step=2, name="SIGTERM", once="stopped")
    words = [*DENSE, "--trainer.max_steps=4", stop, "--run-dir=r"]
    assert cli(*words)[0] == 143
    for change in ("--data.batch_size=3", "--trainer.accumulate_grad_batches=2"):
        code, _, err = cli(*words, change)
        assert code == 2 and "a step of the checkpoint is 4 rows" in err and "Traceback" not in err
    code, _, err = cli(*words, "--data.batch_size=2")
    assert code == 0 and "becomes 1 ranks x batch_size 2 x accumulate_grad_batches 2: the same 4 rows a step" in err
