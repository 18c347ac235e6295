"""ConversationData and ToyData: what a batch holds, in which order, and what is said about bad input."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from mmframe.batch import Batch
from mmframe.data import ConversationData, MultimodalData, ToyData
from mmframe.data.base import EpochSampler
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from tests.data.support import embedder, processor, write_set
from tests.helpers import tiny_embedder, tiny_net


def made(train: object, **options: object) -> ConversationData:
    data = ConversationData(train=train, batch_size=3, **options)  # type: ignore[arg-type]
    data.connect(processor(), embedder())
    return data


def batches(data: MultimodalData) -> list[Batch]:
    return list(data.train_dataloader())


def test_an_epoch_shows_every_question_once(tmp_path: Path) -> None:
    data = made(str(write_set(tmp_path)), questions_per_image=2)
    got = batches(data)
    assert len(got) == len(data.train_dataloader()) == 8  # 7 records x 3 rows, a conversation, a text: 23 rows by 3
    text = processor().tokenizer.decode(torch.cat([b.ids[b.kinds == TokenKind.TEXT] for b in got]).tolist())
    assert Counter(text.split("?"))["hi\nhello"] <= 1
    assert sum(text.count(f"q{q}?") for q in range(5)) == 35
    assert text.count("a square") == 1 and text.count("hi\nhello") == 1


def test_batches_mix_text_and_images_and_run_through_a_model(tmp_path: Path) -> None:
    data = ToyData(size=12, text_share=0.5, batch_size=4).connect(processor(), tiny_embedder())
    net = tiny_net().eval()
    for batch in batches(data):
        batch.ids %= 64  # the tiny model's vocabulary
        assert batch.image_slots.numel() == 4 * batch.tiles.shape[0]
        assert net(batch).logits.shape[0] == batch.supervised.numel()


def test_order_is_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    path = str(write_set(tmp_path))

    def keys(data: MultimodalData, epochs: int = 2) -> list[tuple[str, ...]]:
        loader = data.train_dataloader()
        return [batch.keys for _ in range(epochs) for batch in loader]

    first = keys(made(path, questions_per_image=2))
    assert keys(made(path, questions_per_image=2)) == first
    assert keys(made(path, questions_per_image=2, num_workers=2)) == first
    assert keys(made(path, questions_per_image=2, seed=1)) != first
    assert first[:8] != first[8:] and Counter(sum(first[:8], ())) == Counter(sum(first[8:], ()))


@pytest.mark.parametrize("world", [2, 4])
def test_p3_global_batches_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    alone = list(EpochSampler(24))
    ranks = [list(EpochSampler(24, rank, world)) for rank in range(world)]
    size = 8 // world
    for step in range(3):
        together = [place for rank in ranks for place in rank[step * size : (step + 1) * size]]
        assert sorted(together) == alone[step * 8 : (step + 1) * 8]
    uneven = [list(EpochSampler(23, rank, world)) for rank in range(world)]
    assert {len(rank) for rank in uneven} == {24 // world}
    assert {index for rank in uneven for _, index in rank} == set(range(23))


def test_weights_go_on_where_the_last_epoch_stopped(tmp_path: Path) -> None:
    big, small = write_set(tmp_path, "big", records=9, questions=1), write_set(tmp_path, "small", records=3)
    data = made([str(big), str(small)], weights=[0.5, 2])
    rows = data.train_rows
    assert rows is not None and len(rows) == round(0.5 * 11) + 2 * 5
    seen: list[Counter] = []
    for epoch in range(11):
        seen.append(Counter(rows.sample(epoch, index).key for index in range(len(rows))))
        of_small = {key: count for key, count in seen[-1].items() if "small" in key}
        assert set(of_small.values()) == {2} and len(of_small) == 5
    of_big = {key: count for key, count in sum(seen, Counter()).items() if "big" in key}
    assert sum(of_big.values()) == 66 and set(of_big.values()) == {6}  # 66 rows taken: 6 passes over 11


def test_excluded_answers_are_gone_and_validation_is_in_order(tmp_path: Path) -> None:
    train, val = write_set(tmp_path), write_set(tmp_path, "val", records=2)
    data = made(str(train), val=str(val), exclude_answers=["yes", "no"])
    text = processor().tokenizer.decode(torch.cat([b.ids for b in batches(data)]).tolist())
    assert "yes" not in text and "red" in text
    validation = data.val_dataloader()
    keys = [key for batch in validation for key in batch.keys]
    assert [key.rpartition(":")[2] for key in keys] == ["p0", "p1", "talk", "text"]
    assert keys == [key for batch in validation for key in batch.keys]


def test_pictures_are_kept_in_memory_up_to_the_limit(tmp_path: Path) -> None:
    path = str(write_set(tmp_path))
    kept, not_kept = made(path), made(path, cache_mb=0)
    for a, b in zip(batches(kept), batches(not_kept), strict=True):
        assert torch.equal(a.tiles, b.tiles)
    assert kept.train_rows.store._bytes == 7 * 3 * 16 * 16  # type: ignore[union-attr]
    assert not not_kept.train_rows.store._kept  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(tmp_path: Path, workers: int) -> None:
    path = write_set(tmp_path, records=1)
    (tmp_path / "train-0.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    data = made(str(path), num_workers=workers)
    with pytest.raises(UserError, match=r"cannot read the picture .*train-0\.png") as caught:
        for batch in data.train_dataloader():
            data.on_before_batch_transfer(batch, 0)
    assert "train:" in str(caught.value) and "\n" not in str(caught.value)


def test_messages_about_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFRAME_DEMO_DATA", str(tmp_path / "demo"))
    bad = tmp_path / "bad.jsonl"
    for train, text, message in [
        ("demo:easy_vqa/train.jsonl", None, "run: python -m mmframe.data.demo"),
        (str(tmp_path / "nothing.jsonl"), None, r"nothing\.jsonl does not exist$"),
        (str(bad), "", "holds no records"),
        (str(bad), '{"id": 1}\n{', "line 1 must have either"),
        (str(bad), '{"questions": [["q"]]}', r"must be a list of \[question, answer\]"),
        (str(bad), '{"questions": [["q", "a"]]}\n{', "line 2 is not JSON"),
    ]:
        if text is not None:
            bad.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            made(train)
    with pytest.raises(UserError, match="weights"):
        ConversationData(train=["a", "b"], weights=[1.0])
    with pytest.raises(UserError, match="batch_size=0"):
        ConversationData(train="a", batch_size=0)


@pytest.mark.parametrize("template", ["plain", "chatml", "internlm2-chat"])
@pytest.mark.parametrize("options", [{}, {"max_tiles": 3}, {"images_per_row": 2, "max_tiles": 4}])
def test_toy_data(template: str, options: dict[str, int]) -> None:
    data = ToyData(size=16, **options)
    data.connect(processor(template), embedder())
    train, val = data.train_rows, data.val_rows
    assert train is not None and val is not None
    kinds = set()
    for index in range(16):
        sample, again = train.sample(1, index), train.sample(1, index)
        assert torch.equal(sample.ids, again.ids) and torch.equal(sample.tiles, again.tiles)
        kinds.add((bool(len(sample.tiles)), bool(sample.branches.any())))
    assert (False, False) in kinds and (True, False) in kinds
    assert torch.equal(val.sample(0, 3).ids, val.sample(7, 3).ids)


def test_setup_takes_processor_and_embedder_from_the_model() -> None:
    from types import SimpleNamespace

    data = ToyData(size=4)
    module = SimpleNamespace(processor=processor("chatml"), net=SimpleNamespace(patch_embedder=embedder(8, 9)))
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=1)  # type: ignore[assignment]
    data.setup("fit")
    assert data.processor is module.processor
    assert any(batch.image_slots.numel() % 9 == 0 and batch.tiles.shape[-1] in (1, 8) for batch in batches(data))
