"""What the YAML format can say: templates, pictures inside of texts, overrides, variants."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmframe.data.pictures import open_picture
from mmframe.errors import UserError
from mmframe.tasks import load_task
from mmframe.tasks.fields import evaluate
from mmframe.tasks.readers.base import Files
from mmframe.tasks.readers.parquet import read_parquet
from tests.tasks import official


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{a}", [1, 2]),
        ("{a.1}", 2),
        ("<{b.c}>", "<deep>"),
        ("{rows.*.t}", ["x", "y"]),
        ("{missing?}", None),
        ("[{missing?}]", "[]"),
        ("{{{n}}}", "{3}"),
        ("{n|letter}", "D"),
        ("{letter|number}", 1),
        ("{text|list}", ["it's", "b"]),
        ("{path|without(./)}", "x/y.png"),
        ("{n|pad(4)}", "0003"),
        ("{n|map(3=three, other)}", "three"),
        ("{n|map(4=four, other)}", "other"),
        ("{word|before(: )}", "boat"),
        ("{word|after(: )|first(5)}", "a thi"),
        ("{word|bytes}", 14),
        ("{sum|boxed}", r"\frac{1}{2}"),
        ({"A": "{n}", "B": "{nothing}"}, {"A": 3}),
        (["{nothing}", "{n}", "{a}"], [3, 1, 2]),
        (7, 7),
    ],
)
def test_templates(template: Any, value: Any) -> None:
    row = {
        "a": [1, 2], "b": {"c": "deep"}, "rows": [{"t": "x"}, {"t": "y"}], "n": 3, "letter": "(B)", "nothing": None,
        "text": "[\"it's\", 'b']", "path": "./x/y.png", "word": "boat: a thing.", "sum": r"so $\boxed{\frac{1}{2}}$",
    }  # fmt: skip
    assert evaluate(template, row) == value


def written_task(folder: Path, rows: list[dict[str, Any]], **change: Any) -> str:
    content = {
        "about": "mine",
        "split": "test",
        "data": {"folder": "mine", "jsonl": {"file": "rows.jsonl"}},
        "fields": {"id": "{row}", "images": "{pictures?}"},
        "reference": {"answers": "x"},
        "prompt": "{q}",
        "metric": {"class_path": "ExactMatch"},
    }
    official.put_lines(folder / "mine/rows.jsonl", rows)
    for name in "abc":
        official.put(folder / f"mine/{name}.png", official.picture(ord(name)))
    official.put(folder / "mine.yaml", json.dumps(content | change))
    return str(folder / "mine.yaml")


def test_pictures_stand_where_a_text_names_them(tmp_path: Path) -> None:
    """Interleaved: in the order of their placeholders, twice if they are named twice; the others come first."""
    rows = [{"q": "First <image 2>, then <image 1>, then <image 2>.", "pictures": ["a.png", "b.png", "c.png"]}]
    pictures = {"named": "<image {n}>", "each": "<image>\n"}
    example = load_task(written_task(tmp_path, rows, pictures=pictures), tmp_path)[0]
    assert example.prompt == "<image>\nFirst <image>, then <image>, then <image>."
    assert [picture.name for picture in example.images] == ["c.png", "b.png", "a.png", "b.png"]  # type: ignore[union-attr]
    rows[0]["q"] = "What is <image 4>?"
    with pytest.raises(UserError, match="line 1: its text names picture 4, it has 3"):
        load_task(written_task(tmp_path, rows, pictures=pictures), tmp_path)


def test_a_text_cannot_bring_a_placeholder_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: its text holds '<image>' itself"):
        load_task(written_task(tmp_path, [{"q": "What is <image>?", "pictures": ["a.png"]}]), tmp_path)


def test_a_system_message_comes_first(tmp_path: Path) -> None:
    task = load_task(written_task(tmp_path, [{"q": "Hm?"}], system="Be brief."), tmp_path)
    assert [(turn["from"], turn["value"]) for turn in task[0].turns] == [("system", "Be brief."), ("human", "Hm?")]


def test_overrides_and_digests(official_data: Path) -> None:
    plain = load_task("docvqa_val", official_data)
    other = load_task("docvqa_val", official_data, max_tiles=6, decoding={"max_new_tokens": 5})
    assert (other.max_tiles, other.decoding.max_new_tokens) == (6, 5)
    assert other.prompt_digest == plain.prompt_digest and other.data_fingerprint == plain.data_fingerprint
    asked = load_task("docvqa_val", official_data, prompt="{question}")
    assert asked[0].prompt == "<image>\nWhat is written in line 0?" and asked.prompt_digest != plain.prompt_digest
    assert plain.scored and not load_task("docvqa_test", official_data).scored
    with pytest.raises(UserError, match="unknown key 'max_tile'; did you mean 'max_tiles'"):
        load_task("docvqa_val", official_data, max_tile=6)


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    file = written_task(tmp_path, [{"q": "Hm?"}])
    before = load_task(file, tmp_path).data_fingerprint
    assert load_task(file, tmp_path).data_fingerprint == before
    official.put_lines(tmp_path / "mine/rows.jsonl", [{"q": "Ha?"}])
    assert load_task(file, tmp_path).data_fingerprint != before


@pytest.mark.parametrize("name", ["mmbench_en_dev", "docvqa_val", "easy_vqa_test", "mmmu_val"])
def test_examples_go_to_other_processes_and_pictures_are_equal_when_they_are_one(
    name: str, official_data: Path
) -> None:
    """Loader processes get tasks by pickle; a cache of pictures needs that the same picture is the same key."""
    task = load_task(name, official_data)
    copy = pickle.loads(pickle.dumps(task))
    assert copy[0] == task[0] and hash(copy[0].images) == hash(task[0].images)
    assert open_picture(copy[0].images[0]).tobytes() == open_picture(task[0].images[0]).tobytes()


def test_rotated_rows_share_the_picture_of_the_first(official_data: Path) -> None:
    examples = list(load_task("mmbench_en_dev", official_data))
    assert len({example.images for example in examples[:4]}) == 1 != len({example.images for example in examples})
    assert [example.reference["group"] for example in examples] == [7] * 4 + [8] * 2


def test_parquet_s_pictures_are_single_or_in_lists_or_missing(tmp_path: Path) -> None:
    rows = [
        {"one": official.cell(1), "many": [official.cell(2), official.cell(3)], "plain": official.picture(4)},
        {"one": None, "many": [], "plain": official.picture(5)},
        {"one": {"bytes": None, "path": "x.png"}, "many": [official.cell(6)], "plain": official.picture(7)},
    ]
    official.put_parquet(tmp_path / "a.parquet", rows)
    official.put_parquet(tmp_path / "b.parquet", rows)
    found = read_parquet(Files(tmp_path, ""), "*.parquet").rows
    for made, row in zip(found, rows * 2, strict=True):
        assert [picture.read() for picture in made["many"]] == [picture["bytes"] for picture in row["many"]]
        assert made["plain"].read() == row["plain"] and made["plain"].read(8) == row["plain"][:8]
    assert found[0]["one"].read() == official.picture(1) and found[1]["one"] is None
    with pytest.raises(UserError, match=r"b.parquet row 3, one: the picture has no bytes, only a path"):
        found[5]["one"].read()
