"""What feeding a model costs: images and tokens a second for each core, where the time goes, memory of a worker.

    pip install webdataset litdata        the rivals; each is left out where it is not installed
    python -m experiments.bench.data_loading [--offline DIR]

writes experiments/results/data_loading.json. Shards of 448-px JPEG pictures are made for it; with --offline the corpus
of `mmframe data offline DIR` is read too. Everything that is compared runs in one process with one thread, in turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from components.sources.tar_shards import TarShards
from components.sources.text import TextCorpus
from experiments.bench.timing import compare, ratio, write_result
from mmframe.cli.malloc import keep_freed_memory
from mmframe.data import MixtureData
from mmframe.data.encoding import Encoder
from mmframe.data.pictures import open_picture
from mmframe.data.source import Source
from mmframe.errors import UserError
from mmframe.images import cut_tiles
from mmframe.processing import ChatProcessor, SmolLM2Tokenizer
from mmframe.tile_tokens import TileGeometry

SIDE, TOKENS = 448, 256
WORDS = "a photo of the small red old house tree river dog near under behind with two many bright people road".split()
EMBEDDER: Any = TileGeometry.plain(SIDE, 16, 16)


def make_shards(folder: Path, shards: int, samples: int) -> list[str]:
    """Tar shards of pictures like photos (smooth shapes, fine grain) with captions of 8 to 30 words."""
    draw = np.random.default_rng(0)
    names = []
    for shard in range(shards):
        names.append(str(folder / f"{shard:05d}.tar"))
        with tarfile.open(names[-1], "w") as tar:
            for sample in range(samples):
                coarse = Image.fromarray(draw.integers(0, 255, (28, 28, 3), dtype=np.uint8))
                smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
                grain = draw.integers(-12, 12, smooth.shape)
                written = io.BytesIO()
                Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(written, "JPEG", quality=85)
                caption = " ".join(draw.choice(WORDS, draw.integers(8, 30)))
                for ending, data in (("jpg", written.getvalue()), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{shard:05d}{sample:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return names


def mixture(sources: dict[str, Source], **options: Any) -> MixtureData:
    settings = {"max_tokens": 4096, "prompts": "describe", "max_tiles": 1} | options
    processor = ChatProcessor(SmolLM2Tokenizer(), "chatml")
    return MixtureData(sources, **settings).connect(processor, EMBEDDER)  # type: ignore[return-value]


# ---- pipelines: each returns how many pictures it made ready


def decoded(source: Source, max_tiles: int, limit: int) -> Callable[[], int]:
    """Ours, reading, decoding and resizing alone."""

    def run() -> int:
        count = 0
        for index in range(min(limit, len(source))):
            for picture in source.record(index).images:
                cut_tiles(open_picture(picture), SIDE, max_tiles)
                count += 1
        return count

    return run


def full(data: MixtureData, limit: int) -> Callable[[], int]:
    """Ours, whole: rows of the plan, tokenised, packed, collated, as a step gets them."""

    def run() -> int:
        count = 0
        for batch in data.train_dataloader():
            count += batch.num_records
            if count >= limit:
                break
        return count

    return run


def webdataset_plain(shards: list[str], limit: int) -> Callable[[], int]:
    """webdataset's own way: decode, resize, as arrays; no tokens, no packing, no place to resume from."""
    import webdataset as wds

    def resized(image: Image.Image) -> np.ndarray:
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return np.array(image)

    def run() -> int:
        pipeline = wds.WebDataset(shards, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt")
        count = 0
        for _ in pipeline.map_tuple(resized, lambda text: text):
            count += 1
            if count >= limit:
                break
        return count

    return run


def litdata_plain(source: Source, folder: Path, limit: int) -> Callable[[], int]:
    """litdata's own way, from its own format (made before, not timed): decode, resize, as arrays."""
    import litdata

    litdata.optimize(fn=_litdata_sample, inputs=[(source, i) for i in range(len(source))], output_dir=str(folder),
                     chunk_bytes="64MB", num_workers=1, start_method="fork")  # fmt: skip

    def run() -> int:
        dataset = litdata.StreamingDataset(str(folder), shuffle=False)
        count = 0
        for sample in dataset:
            with Image.open(io.BytesIO(sample["image"])) as image:
                made = image.convert("RGB")
                if made.size != (SIDE, SIDE):
                    made = made.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                np.array(made)
            count += 1
            if count >= limit:
                break
        return count

    return run


def _litdata_sample(item: tuple[Source, int]) -> dict[str, Any]:
    source, index = item
    record = source.record(index)
    return {"image": record.images[0].read(), "text": record.caption}  # type: ignore[union-attr]


# ---- where the time goes


def shares(data: MixtureData, rows: int) -> dict[str, Any]:
    """Seconds of each part of a row, by doing it alone on the same records."""
    made: Any = data.train_rows
    encoder: Encoder = made.encoder
    draws = [made.plan.mix.resolve(made.plan.rows(0)[row]) for row in range(min(rows, len(made)))]
    named = [(made.parts[p], int(r)) for d in draws for p, r in zip(d.part.tolist(), d.record.tolist(), strict=True)]
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - begun
        return result

    records = timed("read", lambda: [part.source.record(index) for part, index in named])
    budget = [part.max_tiles for part, _ in named]
    images = timed("decode", lambda: [[open_picture(p) for p in record.images] for record in records])
    timed("resize", lambda: [[cut_tiles(i, SIDE, b) for i in found] for found, b in zip(images, budget, strict=True)])
    timed("tokenise and count", lambda: [encoder.measure(r, b, "") for r, b in zip(records, budget, strict=True)])
    timed("all of it", lambda: [made.sample(0, row) for row in range(len(draws))])
    seconds["assemble rows"] = max(0.0, seconds["all of it"] - sum(seconds[k] for k in ("read", "decode", "resize")))
    per = {name: round(1e3 * value / len(named), 3) for name, value in seconds.items()}
    return {"milliseconds a record": per, "records": len(named)}


def worker_memory(data: MixtureData, batches: int) -> dict[str, Any]:
    """Memory of loader processes that is theirs alone, and what the training process spends on a batch."""
    data.num_workers = 2
    before = psutil.Process().children()
    loader = iter(data.train_dataloader())
    spent, unique = [], []
    for number in range(batches):
        begun = resource.getrusage(resource.RUSAGE_SELF)
        next(loader)
        ended = resource.getrusage(resource.RUSAGE_SELF)
        spent.append(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
        if number in (batches // 4, batches - 1):
            workers = [p for p in psutil.Process().children() if p not in before]
            unique.append(max(p.memory_full_info().uss for p in workers if p.is_running()) / 2**20)
    data.num_workers = 0
    return {
        "MiB of a worker, after a quarter and at the end": [round(u) for u in unique],
        "milliseconds of the training process for a batch": round(1e3 * float(np.median(spent)), 2),
    }


def measured(data: MixtureData, rows: int) -> dict[str, Any]:
    """Rates of whole rows in one process."""
    made: Any = data.train_rows
    begun = time.perf_counter()
    samples = [made.sample(0, row) for row in range(min(rows, len(made)))]
    seconds = time.perf_counter() - begun
    tiles = sum(s.tiles.shape[0] for s in samples)
    return {
        "records/s": round(sum(s.num_records for s in samples) / seconds, 1),
        "tiles/s": round(tiles / seconds, 1),
        "tokens/s": round(sum(map(len, samples)) / seconds),
        "tiles a record": round(tiles / sum(s.num_records for s in samples), 2),
    }


def offline(folder: Path, max_tiles: int) -> dict[str, Source]:
    """The training part of the offline corpus, as its mixture.yaml has it."""
    import yaml

    file = folder / "mixture.yaml"
    if not file.is_file():
        raise UserError(f"{file} does not exist; run: mmframe data offline {folder}")
    classes = {"TarShards": TarShards, "TextCorpus": TextCorpus}
    given = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]["init_args"]["sources"]
    return {name: classes[spec["class_path"]](**spec["init_args"], max_tiles=max_tiles) for name, spec in given.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every run of ours does
    figures: dict[str, Any] = {"samples": args.samples, "rounds": args.rounds, "versions": _versions()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = make_shards(folder, 4, args.samples // 4)
        source = TarShards(shards)
        source.open()
        data = mixture({"made": TarShards(shards)})
        candidates = {
            "ours, decode and resize": decoded(source, 1, args.samples),
            "ours, whole": full(data, args.samples),
        }
        if "webdataset" in figures["versions"]:
            candidates["webdataset, decode and resize"] = webdataset_plain(shards, args.samples)
        if "litdata" in figures["versions"]:
            candidates["litdata, decode and resize"] = litdata_plain(source, folder / "lit", args.samples)
        counts = {name: run() for name, run in candidates.items()}
        seconds = compare({name: _silent(run) for name, run in candidates.items()}, args.rounds)
        figures["448-px JPEG"] = {
            "images/s of a core": {n: round(counts[n] / float(np.median(s)), 1) for n, s in seconds.items()},
            "ratios": {
                f"{name} over ours, whole": ratio(seconds, name, "ours, whole")
                for name in seconds
                if name != "ours, whole"
            },
            "ours": measured(data, 60) | shares(data, 40) | worker_memory(mixture({"made": TarShards(shards)}), 40),
        }
        print(json.dumps(figures["448-px JPEG"], indent=1))
    if args.offline is not None:
        for tiles in (1, 4, 6, 12):
            data = mixture(offline(args.offline, tiles), max_tokens=8192)
            found = measured(data, 60) | shares(data, 30)
            if tiles == 6:
                found |= worker_memory(data, 40)
                pictures = {n: s for n, s in offline(args.offline, tiles).items() if isinstance(s, TarShards)}
                found["fill of rows of 4,096 tokens: all; pictures alone"] = [
                    fill(mixture(sources, max_tokens=4096)) for sources in (offline(args.offline, tiles), pictures)
                ]
            figures[f"offline corpus, {tiles} tiles"] = found
            print(tiles, json.dumps(found))
        slow = figures["offline corpus, 6 tiles"]
        milliseconds = sum(slow["milliseconds a record"][k] for k in ("read", "decode", "resize", "assemble rows"))
        figures["cores for one H100"] = cores_for_h100(1e3 * slow["tiles a record"] / milliseconds)
        print(json.dumps(figures["cores for one H100"], indent=1))
    command = "python -m experiments.bench.data_loading" + (" --offline DIR" if args.offline else "")
    print(write_result("data_loading", command, figures))


def fill(data: MixtureData) -> float:
    """Tokens of all rows over what they could hold."""
    plan = data.train_rows.plan  # type: ignore[union-attr]
    rows = plan.rows(0)
    tokens = int(plan.tokens(plan.mix.resolve(rows.draws)).sum())
    return round(tokens / (plan.shape.tokens * len(rows)), 4)


# ---- how many cores a GPU needs

H100 = 989e12 * 0.4  # FLOP/s in bf16, at a utilisation of 40 % that is assumed, not measured
ATTENTION, FFN = 0.3e9, 1.21e9  # weights of InternLM2-1.8B that a token meets in the layers
STAGES = {  # of EViP: whether the attention trains, whether text does, tiles of an image at most, thumbnail included
    "s1_1_concept": (False, False, 5),
    "s1_2_semantic": (False, False, 7),
    "s1_3_alignment": (True, False, 13),
    "s2_instruction": (True, True, 25),
}


def cores_for_h100(tiles_per_core: float, text_tokens: int = 64) -> dict[str, Any]:
    """Cores that keep one H100 busy, from operations and what a core was measured to make ready.

    A product costs 2 FLOP for each weight and token, as much again for the gradient of its input, and once more where
    the weight trains. Attention's own products grow with the row and are counted at the stage's longest image.
    """
    found = {}
    for stage, (attention, text, tiles) in STAGES.items():
        image = tiles * TOKENS
        length = image + text_tokens
        scores = 3 * 4 * 2048 * length / 2 * 24  # two causal products, forward and backward, 24 layers
        shared = (6 if attention else 4) * ATTENTION + scores
        flop = length * shared + image * 6 * FFN + text_tokens * (6 if text else 4) * FFN
        images = H100 / flop
        found[stage] = {
            "tokens/s of an H100, estimated": round(images * length),
            "tiles/s": round(images * tiles),
            "cores": round(images * tiles / tiles_per_core, 1),
        }
    return found


def _silent(run: Callable[[], int]) -> Callable[[], None]:
    def call() -> None:
        run()

    return call


def _versions() -> dict[str, str]:
    def installed() -> Iterator[tuple[str, str]]:
        for name in ("pillow", "torchdata", "webdataset", "litdata"):
            try:
                yield name, importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                print(f"{name} is not installed and left out")

    return dict(installed())


if __name__ == "__main__":
    main()
