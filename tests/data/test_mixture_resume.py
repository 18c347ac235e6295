"""A mixture that was cut off sees exactly the rows that an uninterrupted one sees; other data is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmframe.data.mixture import MixtureData
from mmframe.errors import UserError
from tests.data.mixtures import Listed, pairs, questions, texts
from tests.data.test_resume import Recorder, SaveAt, run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def data_in(tmp_path: Path, more_texts: int = 0, **options: Any) -> MixtureData:
    sources: Any = {
        "pairs": Listed(pairs(tmp_path, 40), "a", prompts="describe", jpeg_noise=True),
        "text": Listed(texts(30 + more_texts), "t", repeat=0.5),
        "vqa": Listed(questions(tmp_path, 10), "q"),
    }
    return MixtureData(sources, **({"max_tokens": 250, "max_tiles": 2, "batch_size": 2} | options))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 7, 8, 12], ids=["mid", "epoch-end", "epoch-2", "epoch-2-mid"])
def test_a_resumed_mixture_goes_on_at_the_very_next_row(tmp_path: Path, workers: int, stop: int) -> None:
    whole = run(data_in(tmp_path, num_workers=workers), 18, SaveAt(stop, tmp_path / "x.ckpt"))
    length = len(data_in(tmp_path).connect(Recorder().processor, Recorder().net.patch_embedder).train_dataloader())
    assert length == 7 and len(whole) == 18 and whole[:7] != whole[7:14]
    assert run(data_in(tmp_path, num_workers=workers), 18, resume=tmp_path / "x.ckpt") == whole[stop:]


def test_a_lost_plan_is_made_again_in_the_middle_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(data_in(tmp_path, num_workers=2), 16, SaveAt(10, tmp_path / "x.ckpt"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert run(data_in(tmp_path, num_workers=2), 16, resume=tmp_path / "x.ckpt") == whole[10:]


def test_the_count_of_bad_records_goes_on(tmp_path: Path) -> None:
    def data() -> MixtureData:
        records = pairs(tmp_path, 40)
        whole = records[7].images[0].read_bytes()
        records[7].images[0].write_bytes(whole[:-30])
        return MixtureData({"p": Listed(records)}, max_tokens=250, batch_size=2, max_bad_fraction=0.1)  # type: ignore

    first = data()
    run(first, 12, SaveAt(5, tmp_path / "x.ckpt"))
    second = data()
    run(second, 12, resume=tmp_path / "x.ckpt")
    assert second.quarantine.state_dict() == first.quarantine.state_dict()
    assert first.quarantine.bad >= 2, "seen in each epoch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more_texts": 1}, r"source text was 30 records in 1 files .*, it is now 31 records"),
        ({"max_tokens": 251}, "plan was"),
        ({"seed": 1}, "plan was"),
        ({"num_workers": 1}, "num_workers=0, this run has 1"),
    ],
)
def test_other_data_is_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    run(data_in(tmp_path), 3, SaveAt(2, tmp_path / "x.ckpt"))
    with pytest.raises(UserError, match=message):
        run(data_in(tmp_path, **change), 4, resume=tmp_path / "x.ckpt")


def test_other_data_is_taken_where_that_is_asked_for(tmp_path: Path) -> None:
    run(data_in(tmp_path), 3, SaveAt(2, tmp_path / "x.ckpt"))
    other = run(data_in(tmp_path, more_texts=20), 6)
    went_on = run(data_in(tmp_path, more_texts=20, allow_other_data=True), 6, resume=tmp_path / "x.ckpt")
    assert went_on == other[2:]


def test_data_may_move_to_another_folder(tmp_path: Path) -> None:
    whole = run(data_in(tmp_path / "a"), 6, SaveAt(2, tmp_path / "x.ckpt"))
    assert run(data_in(tmp_path / "b"), 6, resume=tmp_path / "x.ckpt") == whole[2:]
