"""What chat, generate and web share: flags of the model and of sampling, and the model ready to answer."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmframe.cli import inference_ranks
from mmframe.cli.flags import whole
from mmframe.cli.progress_line import short
from mmframe.errors import UserError

if TYPE_CHECKING:  # torch is loaded only to run something
    import torch

    from mmframe.engine import Engine
    from mmframe.loading import LoadedModel
    from mmframe.sampling import SamplingParams

DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32", "float32": "float32"}
MAX_TILES = 12  # of the released models


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
        name: as the user gave it.
        max_tiles: image budget of a question, thumbnails not counted.
        whole_weights: of a model that is spread over processes, what tells its weights from others; else "".
    """

    name: str
    model: LoadedModel
    engine: Engine
    max_tiles: int
    whole_weights: str = ""

    def describe(self) -> str:
        """e.g. runs/demo/s2: 0.4B parameters, bfloat16 on cpu."""
        parameters = list(self.model.net.parameters())
        count = short(sum(p.numel() for p in parameters)).replace("G", "B")
        dtype = str(parameters[0].dtype).removeprefix("torch.")
        return f"{self.name}: {count} parameters, {dtype} on {self.engine.device}"


def add_model_flags(parser: argparse.ArgumentParser, system: bool = True) -> None:
    """--model, --device, --dtype, --expert-backend, --max-tiles and, if asked for, --system."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=True, metavar="M", help="run directory, weights file, official folder, .gguf or hub id"
    )
    group.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one"
    )
    group.add_argument("--dtype", type=_dtype, metavar="T", help="bf16 or fp32; default: as stored")
    group.add_argument(
        "--expert-backend",
        choices=("auto", "torch", "cupy"),
        default="auto",
        help="how experts run; default: the fused kernels where they were measured to be faster",
    )
    group.add_argument(
        "--max-tiles",
        type=whole(1),
        metavar="N",
        help=f"most tiles of a question's pictures; default: as trained, else {MAX_TILES}",
    )
    if not system:
        return
    group.add_argument("--system", metavar="TEXT", help='system message; default: the template\'s own, "" for none')


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen, and where an answer ends."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: %(default)s)"
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0, the default, takes the likeliest token"
    )
    group.add_argument("--top-k", type=int, default=0, metavar="N", help="choose among the N likeliest; 0 is off")
    group.add_argument("--top-p", type=float, default=1.0, metavar="X", help="choose within this probability mass")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 repeats less")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends an answer; may be given several times"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default: %(default)s)")


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """What `add_sampling_flags` read.

    Raises:
        UserError: a value out of its range.
    """
    from mmframe.sampling import SamplingParams

    return SamplingParams(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop),
        seed=args.seed,
    )


def open_model(args: argparse.Namespace, spread: bool = False) -> Served:
    """Loads what `add_model_flags` read.

    Args:
        args: The flags.
        spread: Over the processes that torchrun started (mmframe.tensor_parallel); else each has the whole model.

    Raises:
        UserError: no such model or device, or what loading finds.
    """
    import torch

    from mmframe.cli.malloc import keep_freed_memory
    from mmframe.engine import Engine
    from mmframe.loading import from_pretrained

    keep_freed_memory()
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    spread = spread and inference_ranks.count() > 1
    device = model_device(args) if spread else _device(args.device)
    first = "cpu" if spread else device  # a GPU need only hold its share
    model = from_pretrained(args.model, device=first, dtype=dtype, expert_backend=args.expert_backend)
    weights = ""
    if spread:
        from mmframe.weights import weights_digest

        weights = weights_digest(model.net)
        inference_ranks.spread(model.net, device)
        model.net.to(device)
    budget = args.max_tiles or model.trained_tiles or model.max_tiles or MAX_TILES
    return Served(args.model, model, Engine(model.net, model.processor), budget, weights)


def model_device(args: argparse.Namespace) -> torch.device:
    """What `--device` means for this process.

    Raises:
        UserError: no such device.
    """
    return _device(inference_ranks.device_word(args.device))


def _dtype(text: str) -> str:
    word = text.lower().removeprefix("torch.")
    if word in ("fp16", "float16", "half"):
        raise argparse.ArgumentTypeError(
            "fp16 gives NaN in this model family (activations exceed 65504); use bf16 or fp32"
        )
    if word not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is not known; use bf16 or fp32")
    return DTYPES[word]


def _device(word: str) -> torch.device:
    import torch

    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(word)
    except RuntimeError as error:
        raise UserError(f"--device {word}: is no device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {word}: this machine shows {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
