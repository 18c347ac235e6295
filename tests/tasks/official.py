"""Tiny copies of the official layouts, drawn and written here: a folder as --data DIR wants it, and offline sources."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmframe.data.offline.shards import ShardWriter

PAGE = "Chapter 1\nBoats are red,   and so are these words."
WORDS = ("boat", "kite", "tree", "fish")


def picture(number: int) -> bytes:
    """A PNG file: a square whose colour and place depend on the number."""
    image = Image.new("RGB", (40, 30), "white")
    place = 3 * (number % 7)
    ImageDraw.Draw(image).rectangle((place, 5, place + 12, 20), fill=(40 * number % 256, 90, 160))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def put(path: Path, content: Any) -> None:
    """Writes bytes, a text, or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def put_lines(path: Path, rows: Iterable[Any]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def put_table(path: Path, rows: list[dict[str, Any]], header: bool = True) -> None:
    """As pandas' to_csv: quotes where they are needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerows(([list(rows[0])] if header else []) + [list(row.values()) for row in rows])


def put_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def cell(number: int) -> dict[str, Any]:
    """A picture in a Parquet file."""
    return {"bytes": picture(number), "path": f"{number}.png"}


def coded(number: int) -> str:
    """A picture in a TSV file."""
    return base64.b64encode(picture(number)).decode()


def circular(chinese: bool = False, answers: bool = True) -> list[dict[str, Any]]:
    """Two questions, of four and of two options, under all rotations; rotated rows name the row with the picture."""
    rows = []
    for index, options in ((7, list(WORDS)), (8, list(WORDS[:2]))):
        for turn in range(len(options)):
            turned = options[-turn:] + options[:-turn] if turn else options
            row = {
                "index": index + turn * 1_000_000,
                "question": "图中是什么？" if chinese else f'What is "this",\nquestion {index}?',
                "hint": "" if index == 7 else "It floats.",
                **{letter: turned[n] if n < len(turned) else "" for n, letter in enumerate("ABCD")},
                "answer": "ABCD"[turned.index("boat")],
                "category": "object_localization",
                "image": coded(index) if turn == 0 else index,
            }
            if not answers:
                del row["answer"]
            rows.append(row)
    return rows


# ---- one function a benchmark ----------------------------------------------------------------------------------------


def docvqa(root: Path) -> None:
    rows = [
        {"questionId": 337 + n, "question": f"What is written in line {n}?", "answers": ["red boat", "Red Boat"]}
        | {"image": cell(n), "docId": n}
        for n in range(3)
    ]
    put_parquet(root / "docvqa/DocVQA/validation-00000-of-00001.parquet", rows)
    put_parquet(root / "infovqa/InfographicVQA/validation-00000-of-00001.parquet", rows)
    hidden = [{key: value for key, value in row.items() if key != "answers"} for row in rows]
    put_parquet(root / "docvqa/DocVQA/test-00000-of-00001.parquet", hidden)
    put_parquet(root / "infovqa/InfographicVQA/test-00000-of-00001.parquet", hidden)


def chartqa(root: Path) -> None:
    kinds = ("human_test", "augmented_test")
    rows = [
        {"type": kind, "question": "How many boats?", "answer": "14", "image": cell(n)} for n, kind in enumerate(kinds)
    ]
    put_parquet(root / "chartqa/data/test-00000-of-00001.parquet", rows)


def textvqa(root: Path) -> None:
    rows = [
        {"question_id": 34602 + n, "question": "what brand is it?", "answers": ["nokia"] * 9 + ["no"], "image": cell(n)}
        for n in range(2)
    ]
    put_parquet(root / "textvqa/data/validation-00000-of-00001.parquet", rows)


def mmbench(root: Path) -> None:
    put_table(root / "mmbench/MMBench_DEV_EN.tsv", circular())
    put_table(root / "mmbench/MMBench_TEST_EN.tsv", circular(answers=False))
    put_table(root / "ccbench/CCBench.tsv", circular(chinese=True))


def mmvet(root: Path) -> None:
    rows = {
        f"v1_{n}": {
            "imagename": f"v1_{n}.png",
            "question": "What is x?",
            "answer": "-1<AND>-5",
            "capability": ["ocr", "math"],
        }
        for n in range(2)
    }
    put(root / "mm-vet/mm-vet.json", rows)
    for name in rows:
        put(root / f"mm-vet/images/{name}.png", picture(1))


def mmmu(root: Path) -> None:
    empty = {f"image_{n}": None for n in range(2, 8)}
    choice = {"question": "Which of <image 1> and <image 2> floats?", "options": "['<image 1>', \"it's <image 2>\"]"}
    rows = [
        {"id": "validation_Art_Theory_1", **choice, "answer": "B", "question_type": "multiple-choice"}
        | {"image_1": cell(1), **empty, "image_2": cell(2)},
        {"id": "validation_Art_Theory_2", "question": "How long is it in <image 1>?", "options": "[]", "answer": "3.5"}
        | {"question_type": "open", "image_1": cell(3), **empty},
    ]
    put_parquet(root / "mmmu/Art_Theory/validation-00000-of-00001.parquet", rows)
    other = {"id": "validation_Math_1", "question": "<image 1> Find x.", "options": "['1', '2', '3']", "answer": "C"}
    put_parquet(
        root / "mmmu/Math/validation-00000-of-00001.parquet",
        [other | {"question_type": "multiple-choice", "image_1": cell(4), **empty, "image_2": cell(5)}],
    )


def mme(root: Path) -> None:
    base = root / "MME_Benchmark_release_version"
    inside = "existence count position color posters celebrity scene landmark artwork OCR"
    beside = "commonsense_reasoning numerical_calculation text_translation code_reasoning"
    for category in (*inside.split(), *beside.split()):
        text = "Is there a boat? Please answer yes or no.\tYes\nIs there a kite? Please answer yes or no.\tNo\n"
        nested = category in ("posters", "celebrity", "scene", "landmark", "artwork")
        put(base / category / ("questions_answers_YN" if nested else "") / "0001.txt", text)
        put(base / category / ("images" if nested else "") / "0001.png", picture(2))


def mathvista(root: Path) -> None:
    common = {
        "image": "images/1.jpg",
        "unit": None,
        "metadata": {"task": "geometry problem solving", "skills": ["geometry"]},
    }
    rows = [
        {"pid": "1", "query": "Hint: Please answer with the letter.\nQuestion: Which?\nChoices:\n(A) 3\n(B) 5"}
        | {
            "choices": ["3", "5"],
            "answer": "5",
            "question_type": "multi_choice",
            "answer_type": "text",
            "precision": None,
        }
        | {"decoded_image": cell(1), **common},
        {
            "pid": "2",
            "query": "Hint: Please answer with a number.\nQuestion: How long?",
            "choices": None,
            "answer": "1.2",
        }
        | {"question_type": "free_form", "answer_type": "float", "precision": 1.0, "decoded_image": cell(2), **common},
    ]
    put_parquet(root / "mathvista/data/testmini-00000-of-00001.parquet", rows)


def seed(root: Path) -> None:
    rows = [
        {"question_id": str(n), "data_id": f"{n}_{n}", "data_type": kind, "question": "What floats?", "answer": "B"}
        | {"question_type_id": n + 1, **{f"choice_{c}": word for c, word in zip("abcd", WORDS, strict=True)}}
        for n, kind in enumerate(("image", "video", "image"))
    ]
    put(root / "SEED-Bench/SEED-Bench.json", {"question_type": {"Scene Understanding": 1}, "questions": rows})
    for name in ("0_0", "2_2"):
        put(root / f"SEED-Bench/SEED-Bench-image/{name}", picture(3))


def ocrbench(root: Path) -> None:
    kinds = ("Regular Text Recognition", "Handwritten Mathematical Expression Recognition")
    rows = [
        {
            "dataset": "d",
            "question": "what is written in the image?",
            "question_type": kind,
            "answer": ["x^2"],
            "image": cell(n),
        }
        for n, kind in enumerate(kinds)
    ]
    put_parquet(root / "ocrbench/data/test-00000-of-00001.parquet", rows)


def hallusionbench(root: Path) -> None:
    rows = [
        {
            "category": "VS",
            "subcategory": "map",
            "visual_input": str(min(figure, 1)),
            "set_id": "0",
            "figure_id": str(figure),
        }
        | {"question_id": "0", "question": "Is this a boat?", "gt_answer": str(figure % 2)}
        | {"filename": f"./hallusion_bench/VS/map/0_{figure}.png" if figure else None}
        for figure in range(3)
    ]
    put(root / "HallusionBench/HallusionBench.json", rows)
    for figure in (1, 2):
        put(root / f"HallusionBench/hallusion_bench/VS/map/0_{figure}.png", picture(figure))


def scienceqa(root: Path) -> None:
    row = {"question": "Which floats?", "choices": list(WORDS[:3]), "answer": 0, "subject": "natural science"}
    rows = {
        "4": row | {"hint": "Look at the picture.", "image": "image.png"},
        "5": row | {"hint": "", "image": None},
        "6": row | {"hint": "", "image": "image.png"},
        "7": row | {"hint": "", "image": "image.png"},
    }
    put(root / "scienceqa/problems.json", rows)
    put(root / "scienceqa/pid_splits.json", {"train": ["7"], "test": ["4", "5", "6"]})
    for key in "46":
        put(root / f"scienceqa/test/{key}/image.png", picture(4))


def gqa(root: Path) -> None:
    rows = {
        f"20{n}": {"imageId": "n1", "question": "Is it red?", "answer": "no", "types": {"structural": kind}}
        for n, kind in enumerate(("verify", "query"))
    }
    put(root / "gqa/testdev_balanced_questions.json", rows)
    put(root / "gqa/images/n1.jpg", picture(5))


def ai2d(root: Path) -> None:
    rows = [
        {"index": n, "image": coded(n) if n else coded(9), "question": "Which letter floats?"}
        | {**dict(zip("ABCD", WORDS, strict=True)), "answer": "A"}
        for n in range(2)
    ]
    put_table(root / "ai2d/AI2D_TEST.tsv", rows)


def captions(root: Path) -> None:
    said = ["a red boat floats on the water", "three green kites fly over a hill"]
    karpathy = [
        {
            "filepath": "val2014",
            "filename": f"{n}.png",
            "cocoid": 391 + n,
            "imgid": n,
            "split": "test" if n < 2 else "train",
        }
        | {"sentences": [{"raw": said[n % 2]}] * 5}
        for n in range(3)
    ]
    put(root / "coco/dataset_coco.json", {"images": karpathy, "dataset": "coco"})
    put(root / "flickr30k/dataset_flickr30k.json", {"images": karpathy, "dataset": "flickr30k"})
    images = [{"id": n, "file_name": f"{n}.png", "domain": "in-domain"} for n in range(2)]
    notes = [{"image_id": n % 2, "id": n, "caption": said[n % 2]} for n in range(20)]
    put(root / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": notes})
    for n in range(2):
        for folder in ("coco/val2014", "flickr30k/flickr30k-images", "nocaps/images"):
            put(root / folder / f"{n}.png", picture(n))


def vqav2(root: Path) -> None:
    questions = [{"image_id": 42, "question": "Where is the boat?", "question_id": 42000 + n} for n in range(2)]
    answers = [{"answer": "at sea", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    notes = [
        {"question_id": 42000 + n, "image_id": 42, "answer_type": "other", "answers": answers}
        for n in reversed(range(2))
    ]
    put(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions, "data_type": "mscoco"})
    put(root / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": notes})
    put(root / "vqav2/val2014/COCO_val2014_000000000042.jpg", picture(6))


def pope(root: Path) -> None:
    for setting in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": n,
                "image": "COCO_val2014_000000000042.jpg",
                "text": "Is there a boat in the image?",
                "label": said,
            }
            for n, said in enumerate(("yes", "no"), 1)
        ]
        put_lines(root / f"pope/coco_pope_{setting}.json", rows)
    put(root / "pope/val2014/COCO_val2014_000000000042.jpg", picture(6))


def mmlu(root: Path) -> None:
    for subject in ("abstract_algebra", "world_religions"):
        row = {"question": f'Which "one", in {subject}?', **dict(zip("ABCD", WORDS, strict=True)), "answer": "C"}
        put_table(root / f"mmlu/test/{subject}_test.csv", [row] * 2, header=False)
        put_table(
            root / f"mmlu/dev/{subject}_dev.csv", [row | {"question": f"Example {n}?"} for n in range(5)], header=False
        )
        renamed = {"": 0, "Question": f"{subject}是？", **dict(zip("ABCD", WORDS, strict=True)), "Answer": "B"}
        put_table(root / f"cmmlu/test/{subject}.csv", [renamed])
        put_table(root / f"cmmlu/dev/{subject}.csv", [renamed | {"Question": f"例{n}？"} for n in range(5)])


def agieval(root: Path) -> None:
    english = "aqua-rat logiqa-en lsat-ar lsat-lr lsat-rc sat-math sat-en sat-en-without-passage"
    chinese = "logiqa-zh gaokao-chinese gaokao-english gaokao-geography gaokao-history gaokao-biology gaokao-chemistry"
    more = "gaokao-physics gaokao-mathqa jec-qa-kd jec-qa-ca"
    options = [f"({letter}){word}" for letter, word in zip("ABCD", WORDS, strict=True)]
    for name in f"{english} {chinese} {more}".split():
        passage = "A boat floats." if name == "sat-en" else None
        put_lines(
            root / f"agieval/{name}.jsonl",
            [{"passage": passage, "question": "What?", "options": options, "label": "A"}],
        )


def maths(root: Path) -> None:
    rows = [
        {"problem": "What is $1+1$?", "solution": r"It is $\boxed{\frac{4}{2}}$.", "answer": r"\frac{4}{2}"}
        | {"subject": "Algebra", "level": 2, "unique_id": f"test/algebra/{n}.json"}
        for n in range(2)
    ]
    put_lines(root / "math_500/test.jsonl", rows)
    for subject in ("algebra", "geometry"):
        plain = [
            {**{key: row[key] for key in ("problem", "solution")}, "level": "Level 2", "type": subject} for row in rows
        ]
        put_parquet(root / f"math/{subject}/test-00000-of-00001.parquet", plain)


OFFICIAL: tuple[Callable[[Path], None], ...] = (
    docvqa, chartqa, textvqa, mmbench, mmvet, mmmu, mme, mathvista, seed, ocrbench, hallusionbench, scienceqa, gqa,
    ai2d, captions, vqav2, pope, mmlu, agieval, maths,
)  # fmt: skip


def offline(root: Path) -> None:
    """What `mmframe data offline` and the demo make, by their own writer."""
    asked = {
        "easy_vqa": [["what is the red shape?", "circle"], ["is there a circle?", "yes"]],
        "flags": [["Whose flag is this?", "Chile"], ["What is the capital of the country with this flag?", "Santiago"],
                  ["In which part of the world is the country with this flag?", "Americas"]],
        "maps": [["What does this map show?", "Chile"], ["Which region is coloured rgb(1, 2, 3)?", "Biobío"],
                 ["What is the capital of the region coloured rgb(1, 2, 3)?", "Concepción"]],
        "numbers": [["Which number is written here?", "0421"]],
        "manual_pages": [["Read the text of this page.", PAGE]],
    }  # fmt: skip
    said = {"clipart": "a red boat on the water", "stamps": "An old red boat.", "gimp_figures": "The Brushes dialog"}
    for name, record in [
        *((n, {"questions": q}) for n, q in asked.items()),
        *((n, {"caption": c}) for n, c in said.items()),
    ]:
        (root / "offline" / name).mkdir(parents=True)
        with ShardWriter(root / "offline" / name / "test") as writer:
            for n in range(2):
                other = {"caption": f"{record['caption']} number {n}"} if "caption" in record else record
                writer.add(f"test-{n}", picture(n), "png", {"id": f"test-{n}", **other})
    for name in ("gcide", "handbook", "gimp_text"):
        put_lines(
            root / "offline" / name / "train.jsonl", [{"text": f"Entry {n} of {name}: é.\n\nA boat."} for n in range(4)]
        )
    words = [
        {"text": f'{WORDS[n // 100 % 4]}: a thing, the {n}th; "a {WORDS[n // 100 % 4]} here".'} for n in range(401)
    ]
    put_lines(root / "offline/wordnet/train.jsonl", words)
    put_lines(
        root / "demo/text/text.jsonl", [{"id": str(n), "text": f"boat: a thing that floats, {n}."} for n in range(2)]
    )
    rows = [{"id": f"test-{n}", "image": f"images/test-{n}.png", "questions": asked["easy_vqa"]} for n in range(2)]
    put_lines(root / "demo/easy_vqa/test.jsonl", rows)
    for n in range(2):
        put(root / f"demo/easy_vqa/images/test-{n}.png", picture(n))
