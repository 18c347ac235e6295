"""`mmframe import SRC DST` and `mmframe export SRC DST`: official checkpoints -> ours and back."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmframe.cli.flags import parse_flags

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}

IMPORT_HELP = """Reads an official checkpoint, tensor by tensor; writes weights.safetensors and the tokenizer's files.

SRC is a folder with config.json and safetensors (Mono-InternVL, InternVL-1.5, InternLM2, Llama, Qwen2, Qwen3), a .gguf
file of a Llama, or a hub id ORG/NAME[@REVISION]. No code of the checkpoint is run."""
IMPORT_EXAMPLES = """examples:
  mmframe import OpenGVLab/Mono-InternVL-2B models/mono
  mmframe import internlm/internlm2-chat-1_8b models/internlm2 --image-tokens     to start EViP from it
  mmframe chat --model models/mono --image photo.jpg"""
EXPORT_HELP = """Writes a model of ours in its official layout: config.json, safetensors shards with index, tokenizer.

SRC is the run directory of a stage, the folder of an import, or a weights.safetensors."""
EXPORT_EXAMPLES = """examples:
  mmframe export runs/finetune models/mine
  mmframe export runs/evip_pp/s2_instruction models/mine --dtype bf16 --max-shard-size 2GB"""


def import_main(words: list[str]) -> int:
    """Runs `mmframe import`."""
    args = parse_flags("import", words, _describe_import)
    if args is None:
        return 0
    from mmframe.convert import import_checkpoint

    target = Path(args.dst).expanduser()
    made = import_checkpoint(args.src, target, _dtype(args), args.image_tokens, args.trust_pickle, args.force)
    parameters = sum(math.prod(shape) for _, shape in made.entries.values())
    print(f"{args.src}: {type(made.format).__name__}, {parameters:,} parameters -> {target / 'weights.safetensors'}")
    if made.parts["processor"] is None:
        print(
            f"warning: {args.src} has no tokenizer that we read: the model can be trained and exported, but not chat",
            file=sys.stderr,
        )
    return 0


def export_main(words: list[str]) -> int:
    """Runs `mmframe export`."""
    args = parse_flags("export", words, _describe_export)
    if args is None:
        return 0
    from mmframe.convert import export_checkpoint

    form = export_checkpoint(args.src, Path(args.dst).expanduser(), _dtype(args), args.max_shard_size, args.force)
    print(f"{args.src}: written as {type(form).__name__} -> {args.dst}")
    return 0


def _describe_import(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = IMPORT_HELP, IMPORT_EXAMPLES
    _describe_both(parser)
    parser.add_argument(
        "--image-tokens",
        action="store_true",
        help="give a text LLM the nine tokens that InternVL adds (<img>, </img>, ...); their rows are the mean row",
    )
    parser.add_argument("--trust-pickle", action="store_true", help="also read .bin and .pth files (tensors only)")


def _describe_export(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = EXPORT_HELP, EXPORT_EXAMPLES
    _describe_both(parser)
    parser.add_argument(
        "--max-shard-size", type=_bytes, default="5GB", metavar="SIZE", help="of one file (default: %(default)s)"
    )


def _describe_both(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC")
    parser.add_argument("dst", metavar="DST", help="a folder that does not exist yet")
    parser.add_argument("--dtype", choices=DTYPES, help="convert; default: as stored, to the last bit")
    parser.add_argument("--force", action="store_true", help="write into a folder that is not empty")


def _dtype(args: argparse.Namespace) -> torch.dtype | None:
    import torch

    return None if args.dtype is None else getattr(torch, DTYPES[args.dtype])


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    size = int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]]) if match else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 5GB, 500MB or a number of bytes")
    return size
