"""MixtureData: who is seen how often and in which order, whole rows, and records that cannot be used."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmframe.batch import IGNORE, Batch
from mmframe.data.base import EpochSampler
from mmframe.data.mixture import MixtureData
from mmframe.data.mixture_rows import MixtureRows
from mmframe.data.pictures import Embedded
from mmframe.data.records import Record
from mmframe.data.source import BadRecord
from mmframe.errors import UserError
from tests.data.mixtures import Listed, mixture, pairs, questions, talk, texts
from tests.data.support import embedder, picture, processor


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def rows_of(data: MixtureData) -> MixtureRows:
    assert isinstance(data.train_rows, MixtureRows)
    return data.train_rows


def keys(data: MixtureData, epoch: int) -> list[list[str]]:
    """Keys of the records of each row."""
    rows = rows_of(data)
    return [rows.sample(epoch, i).key.split(", ") for i in range(len(rows))]


def three(tmp_path: Path) -> dict[str, Listed]:
    return {
        "pairs": Listed(pairs(tmp_path, 60), "a", prompts=["what is it?", "say it"]),
        "text": Listed(texts(30), "t", repeat=2),
        "vqa": Listed(questions(tmp_path, 20), "q", repeat=0.5),
    }


# ---- who is seen


def test_an_epoch_visits_every_record_as_often_as_its_source_repeats(tmp_path: Path) -> None:
    data = mixture(three(tmp_path))
    halves = []
    for epoch in range(2):
        seen = Counter(key for row in keys(data, epoch) for key in row)
        late = rows_of(data).plan._made(epoch) / "carried.npy"
        assert len(np.load(late)) <= 3
        assert sum(seen.values()) == pytest.approx(60 + 60 + 10, abs=3)
        if epoch == 0:
            assert {seen[f"pair{n}"] for n in range(60)} == {1} and {seen[f"text{n}"] for n in range(30)} == {2}
        halves.append({key for key in seen if key.startswith("vqa")})
    assert len(halves[0]) == 10 and len(halves[0] | halves[1]) >= 19  # the other half, up to what waits for epoch 3


@pytest.mark.parametrize("repeat", [0.1, 0.3, 1, 2.5])
def test_over_the_epochs_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path, repeat: float) -> None:
    data = mixture({"t": Listed(texts(40), repeat=repeat), "p": Listed(pairs(tmp_path, 30))}, max_tokens=90)
    rows, epochs = rows_of(data), 10
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        packs = rows.plan.rows(epoch)
        assert len(packs) == len(rows), "every epoch has as many rows"
        assert (np.diff(packs.starts) > 0).all(), "no row is empty"
        seen.update(packs.draws.tolist())
    waiting = np.load(rows.plan._made(epochs - 1) / "carried.npy").tolist()
    assert sorted([*seen.elements(), *waiting]) == list(range(epochs * len(rows.plan.mix)))
    times = Counter(
        (int(p), int(r)) for d in seen for p, r in zip(*(getattr(rows.plan.mix.resolve(np.array([d])), n) for n in
        ("part", "record")), strict=True)
    )  # fmt: skip
    assert sum(times.values()) + len(waiting) == epochs * (max(1, round(40 * repeat)) + 30)
    assert max(v for (p, _), v in times.items() if p == 0) - min(v for (p, _), v in times.items() if p == 0) <= 1


def test_the_order_is_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    first, again, other = (mixture(three(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert keys(first, 1) == keys(again, 1) != keys(other, 1)
    assert keys(first, 0) != keys(first, 1)
    one, two = rows_of(first).sample(3, 5), rows_of(again).sample(3, 5)
    assert torch.equal(one.ids, two.ids) and torch.equal(one.tiles, two.tiles)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_order_is_the_same_for_every_number_of_ranks(tmp_path: Path, world_size: int) -> None:
    data = mixture(three(tmp_path))
    count, batch = len(rows_of(data)), 4
    alone = list(EpochSampler(count))
    ranks = [list(EpochSampler(count, rank, world_size)) for rank in range(world_size)]
    steps = count // batch
    for step in range(steps):
        mine = batch // world_size
        together = [place for each in ranks for place in each[step * mine : (step + 1) * mine]]
        assert sorted(together) == alone[step * batch : (step + 1) * batch]


def test_temperature_draws_small_sources_more_often_and_keeps_the_number(tmp_path: Path) -> None:
    sources = {"big": Listed(texts(900, "big"), "b"), "small": Listed(texts(100, "small"), "s")}
    plain, square = mixture(sources), mixture(sources, temperature=2.0)
    assert rows_of(plain).plan.mix.counts.tolist() == [900, 100]
    assert rows_of(square).plan.mix.counts.tolist() == [750, 250]  # sqrt(900) : sqrt(100) = 3 : 1


# ---- rows


def test_rows_are_full_and_their_records_stand_apart(tmp_path: Path) -> None:
    data = mixture({"p": Listed(pairs(tmp_path, 300), prompts=["what?", "and what is this now?"])}, max_tokens=500)
    rows = rows_of(data)
    total = 0
    for index in range(len(rows)):
        row = rows.sample(0, index)
        total += len(row)
        assert len(row) <= 500 and row.num_records == len(row.key.split(", ")) == int(row.docs.max()) + 1
        for doc in row.docs.unique():
            here = row.docs == doc
            assert torch.equal(row.positions[here], torch.arange(int(here.sum())))
            assert row.labels[here][-1] == IGNORE, "no label crosses into the next record"
        slots = int((row.kinds == 1).sum())
        assert slots == row.tiles.shape[0] * 4
        assert row.blocks.max() + 1 == row.blocks[row.blocks >= 0].unique().numel()
    assert total / 500 / len(rows) > 0.97


def test_a_row_is_its_records_encoded_alone(tmp_path: Path) -> None:
    records = [*pairs(tmp_path, 12), talk("t", tmp_path / "pair-1.png", tmp_path / "pair-2.png"), *texts(5)]
    packed = rows_of(mixture({"x": Listed(records)}))
    alone = rows_of(mixture({"x": Listed(records)}, packing=False))
    single = {(s := alone.sample(0, i)).key: s for i in range(len(alone))}
    assert len(alone) == len(records)
    for index in range(len(packed)):
        row = packed.sample(0, index)
        for doc, key in enumerate(row.key.split(", ")):
            for column in ("ids", "kinds", "labels", "positions", "branches"):
                assert torch.equal(getattr(row, column)[row.docs == doc], getattr(single[key], column)), column
        assert row.tiles.shape[0] == sum(single[key].tiles.shape[0] for key in row.key.split(", "))


def test_without_packing_rows_of_like_length_come_together(tmp_path: Path) -> None:
    sources = {"t": Listed(texts(80)), "p": Listed(pairs(tmp_path, 40))}
    grouped = rows_of(mixture(sources, packing=False, length_groups=4))
    lengths = [len(grouped.sample(0, i)) for i in range(len(grouped))]
    spread = np.mean([max(lengths[i : i + 4]) - min(lengths[i : i + 4]) for i in range(0, len(lengths), 4)])
    plain = rows_of(mixture(sources, packing=False))
    before = [len(plain.sample(0, i)) for i in range(len(plain))]
    assert sorted(before) == sorted(lengths)
    assert spread < 0.25 * np.mean([max(before[i : i + 4]) - min(before[i : i + 4]) for i in range(0, len(before), 4)])
    assert lengths[0] != max(lengths) or lengths[4:8] != sorted(lengths)[-8:-4]  # groups are shuffled


def test_a_caption_learns_after_its_prompt_and_jpeg_noise_is_a_function_of_the_visit(tmp_path: Path) -> None:
    sources = {"p": Listed(pairs(tmp_path, 20), prompts="describe", jpeg_noise=True)}
    one, two = rows_of(mixture(sources)), rows_of(mixture(sources))
    for index in range(len(one)):
        row, again = one.sample(1, index), two.sample(1, index)
        assert torch.equal(row.tiles, again.tiles)
        assert (row.labels != IGNORE).sum() > 0
    still = rows_of(mixture({"p": Listed(pairs(tmp_path, 20), prompts="describe")}))
    assert not torch.equal(torch.cat([still.sample(1, i).tiles for i in range(len(still))]),
                           torch.cat([one.sample(1, i).tiles for i in range(len(one))]))  # fmt: skip


def test_the_plan_is_made_once_and_read_by_others(tmp_path: Path, cache: Path) -> None:
    mixture(three(tmp_path))
    plans = sorted((cache / "mmframe" / "plans").rglob("draws.npy"))
    before = [plan.stat().st_mtime_ns for plan in plans]
    assert plans
    again = mixture(three(tmp_path))
    assert [plan.stat().st_mtime_ns for plan in sorted((cache / "mmframe" / "plans").rglob("draws.npy"))] == before
    assert len(list((cache / "mmframe" / "lengths").iterdir())) == 3
    for folder in rows_of(again).plan.folder.iterdir():  # a kill in the middle of writing leaves no facts.json
        (folder / "facts.json").unlink()
    assert keys(mixture(three(tmp_path)), 0) == keys(again, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_give_the_same_batches(tmp_path: Path, workers: int) -> None:
    def batches(num_workers: int) -> list[tuple]:
        loader = mixture(three(tmp_path), batch_size=3, num_workers=num_workers).train_dataloader()
        found = [(b.keys, b.ids.tolist(), float(b.tiles.sum())) for _ in range(2) for b in loader]
        assert all(isinstance(b, Batch) for b in loader)
        return found

    assert batches(workers) == batches(0)


# ---- records that cannot be used


def bad_pictures(folder: Path) -> dict[str, Path]:
    """Files that are no picture or only half of one, by the reason they must get."""
    good = io.BytesIO()
    Image.effect_noise((300, 300), 60).convert("RGB").save(good, "JPEG")
    png = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(png, "PNG")
    files = {
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "half": good.getvalue()[: len(good.getvalue()) // 2],
        "corrupt": png.getvalue()[:60] + b"\0" * 40 + png.getvalue()[100:],
        "header": good.getvalue()[:20],
    }
    found = {}
    for name, data in files.items():
        found[name] = folder / f"{name}.jpg"
        found[name].write_bytes(data)
    found["missing"] = folder / "nowhere.jpg"
    found["bomb"] = folder / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(found["bomb"])
    return found


def odd_pictures(folder: Path) -> dict[str, Path]:
    """Pictures that are unusual and fine."""
    made = {
        "pixel.png": Image.new("RGB", (1, 1), "red"),
        "wide.png": Image.new("L", (50_000, 2)),
        "cmyk.jpg": Image.new("CMYK", (20, 20)),
        "palette.gif": picture().convert("P"),
        "deep.png": Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100),
        "alpha.png": picture().convert("RGBA"),
    }
    for name, image in made.items():
        image.save(folder / name)
    turned = picture((40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    frames = [picture(colour=(n * 60, 0, 0)) for n in range(3)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    return {name: folder / name for name in [*made, "turned.jpg", "moving.webp"]}


def test_hostile_records_are_left_out_with_their_reason_and_nothing_else_changes(tmp_path: Path) -> None:
    bad = bad_pictures(tmp_path)
    good = [talk(f"odd-{name}", path) for name, path in odd_pictures(tmp_path).items()]
    words = {
        "placeholder": Record("count", (tmp_path / "pixel.png",), conversation=(
            {"from": "human", "value": "<image><image> ?"}, {"from": "gpt", "value": "x"})),
        "silent": talk("silent", tmp_path / "pixel.png", answer=" "),
        "role": Record("role", (), conversation=({"from": "robot", "value": "hi"}, {"from": "gpt", "value": "x"})),
        "long": talk("long", tmp_path / "pixel.png", answer="word " * 100),
        "broken": BadRecord("not JSON", "x.jsonl line 7 is not JSON"),
    }  # fmt: skip
    special = talk("special", tmp_path / "pixel.png", answer="<img></s><image>")
    records = [*good, special, *(talk(f"bad-{name}", path) for name, path in bad.items()), *words.values()]
    data = mixture({"x": Listed(records)}, max_bad_fraction=0.8)
    rows = rows_of(data)
    data.quarantine.open(tmp_path / "run")
    seen, left = [], []
    for index in range(len(rows)):
        row = rows.sample(0, index)
        seen += [key for key in row.key.split(", ") if key]
        left += row.left_out
        data.quarantine.add(row.left_out, row.num_records)
    assert sorted(seen) == sorted([record.key for record in good] + ["special"])
    reasons = Counter({"picture unreadable": 5, "picture missing": 1, "picture too large": 1})
    reasons += Counter({"conversation": 2, "nothing to learn": 1, "too long": 1, "not JSON": 1})
    assert data.quarantine.reasons == reasons
    decoded = {each.message.split("'")[1] for each in left}
    assert decoded == {"bad-half", "bad-corrupt"}, "the others were found by their headers, before training"
    written = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in written} == {"picture unreadable"} and len(written) == 2
    assert all(str(tmp_path) in row["message"] for row in written)


def test_the_tiles_of_a_record_that_breaks_at_its_second_picture_are_not_left_behind(tmp_path: Path) -> None:
    half, good = bad_pictures(tmp_path)["half"], pairs(tmp_path, 6)
    records = [good[1], talk("broken", good[2].images[0], half), *good[2:4]]
    row = rows_of(mixture({"x": Listed(records)}, max_tokens=2000, max_bad_fraction=1)).sample(0, 0)
    assert len(row.left_out) == 1 and row.num_records == 4
    assert sorted(row.key.split(", ")) == ["pair1", "pair2", "pair3"]
    whole = rows_of(mixture({"x": Listed([good[1], *good[2:4]], "other")}, packing=False))
    single = {(s := whole.sample(0, i)).key: s for i in range(3)}
    assert torch.equal(row.tiles, torch.cat([single[key].tiles for key in row.key.split(", ")]))


def test_a_literal_special_token_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    row = rows_of(mixture({"x": Listed([talk("s", path, answer="</s> <img>")])})).sample(0, 0)
    special = {processor().tokenizer.eos_id}
    assert [int(i) for i in row.labels if int(i) in special] == [processor().tokenizer.eos_id]  # the end of the turn


def test_too_many_bad_records_end_it_with_one_line(tmp_path: Path) -> None:
    records = [*texts(20), BadRecord("not JSON", "a.jsonl line 3 is not JSON")]
    with pytest.raises(UserError, match=r"1 of 21 records cannot be used \(1 not JSON\), more than max_bad_fraction=0"):
        mixture({"x": Listed(records)})
    with pytest.raises(UserError, match="none of the 1 records can be used"):
        mixture({"x": Listed([BadRecord("not JSON", "a is not JSON")])}, max_bad_fraction=1)


def test_broken_pictures_found_while_training_end_it_when_they_are_too_many(tmp_path: Path) -> None:
    half = bad_pictures(tmp_path)["half"]
    data = mixture({"x": Listed([*texts(300), *(talk(f"h{n}", half) for n in range(5))])}, max_bad_fraction=0.01)
    rows = rows_of(data)
    with pytest.raises(UserError, match=r"picture unreadable\), more than max_bad_fraction=0.01 allows; sample 'h"):
        for index in range(len(rows)):
            row = rows.sample(0, index)
            data.quarantine.add(row.left_out, row.num_records)
    assert data.quarantine.bad == 4  # 3 of 305 are allowed


def test_a_row_that_is_not_as_long_as_measured_is_told(tmp_path: Path) -> None:
    records = pairs(tmp_path, 10)
    rows = rows_of(mixture({"x": Listed(records)}))
    Image.new("RGB", (60, 20)).save(records[3].images[0])  # 20 x 20 before: more tiles now
    Image.new("RGB", (20, 20)).save(records[4].images[0])
    with pytest.raises(UserError, match=r"tokens, \d+ were measured: the data has changed since"):
        for index in range(len(rows)):
            rows.sample(0, index)


def test_pictures_may_lie_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    records = [Record("m", (Embedded("column image row 3", path.read_bytes()),), caption="a thing")]
    assert rows_of(mixture({"x": Listed(records)})).sample(0, 0).tiles.shape[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": 0}, "temperature=0"),
        ({"max_bad_fraction": 2}, "max_bad_fraction=2"),
        ({"prompts": "descibe"}, "did you mean 'describe'"),
    ],
)
def test_wrong_settings_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixture({"t": Listed(texts(3))}, **options)
    with pytest.raises(UserError, match="sources is empty"):
        MixtureData({})
    assert embedder().image_size == 16
