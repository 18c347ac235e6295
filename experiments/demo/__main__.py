"""`python -m experiments.demo`: fetch, train the chain, evaluate every stage, report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FULL_TUNING = REPOSITORY / "experiments" / "results" / "demo_full_tuning.json"
SHEET = (("easy_vqa", 12), ("emoji", 6), ("flags", 6))
VALIDATION_IMAGES = 100
TEXTS = 64
WARM_START = "s0_warm_start"
SUMMARY = """
what the model learned in {train_minutes:.1f} minutes of training, on the official test split:
  open questions  {easy_vqa_open_accuracy:5.1f} %   black picture {blind_open_accuracy:.1f} %, wording {text_only_open_accuracy:.1f} %
  yes / no        {easy_vqa_yes_no_accuracy:5.1f} %   black picture {blind_yes_no_accuracy:.1f} %, wording {text_only_yes_no_accuracy:.1f} %
  all             {easy_vqa_accuracy:5.1f} %
  text-only logits bit-identical to the base LLM while its text is frozen: {text_logits_bit_identical}
report    {folder}/report.md    numbers  {folder}/report.json
pictures  {folder}/curves.png   {folder}/contact_sheet.png"""  # noqa: E501


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__)
    parser.add_argument("--recipe", default="demo/evip_pp", help="recipe to train (default: demo/evip_pp)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="where runs and report go")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data order")
    parser.add_argument("--long", action="store_true", help="three times the steps in every stage that runs the LLM")
    parser.add_argument("--images", type=int, help="measure on so many test pictures instead of all 1,000")
    parser.add_argument("--report-only", action="store_true", help="evaluate and report what is already trained")
    parser.add_argument("overrides", nargs="*", help="further overrides for every stage, e.g. trainer.max_steps=3")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    """Runs the chain through the command line's own entry point; a finished stage is skipped."""
    from mmframe.cli.main import main as mmframe
    from mmframe.cli.recipe import load_recipe

    words = ["fit", "--config", args.recipe, "--run-dir", str(args.run_dir)]
    words += [f"--seed_everything={args.seed}", f"--data.seed={args.seed}"]
    words += _precision(args.overrides)
    words += [f"--{override.lstrip('-')}" for override in args.overrides]
    if args.long:
        recipe = load_recipe([args.recipe])
        steps = {name: recipe.resolve(name)["trainer"]["max_steps"] for name in recipe.stages}
        words += [f"--stages.{name}.trainer.max_steps={3 * n}" for name, n in steps.items() if name != WARM_START]
    code = mmframe(words)
    if code:
        sys.exit(code)


def _precision(overrides: list[str]) -> list[str]:
    """fp32 where this CPU multiplies bf16 more slowly, as those without AVX-512 do: seven times was seen."""
    import torch

    from experiments.bench.timing import matmul_peak

    if any("trainer.precision" in override for override in overrides):
        return []
    bf16, fp32 = (matmul_peak(dtype, size=512, rounds=3) / 1e9 for dtype in (torch.bfloat16, torch.float32))
    if bf16 >= fp32:
        return []
    print(
        f"this CPU multiplies bf16 at {bf16:.0f} GFLOP/s and fp32 at {fp32:.0f}: training in fp32; "
        "a quarter of an hour is for CPUs with bf16 instructions, expect several times that"
    )
    return ["--trainer.precision=32-true"]


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measures every stage and writes the report."""
    import torch

    from experiments.bench.timing import device_name, matmul_peak
    from experiments.demo.draw import draw_contact_sheet, draw_curves
    from experiments.demo.measure import (
        Accuracy,
        ask,
        base_language_model,
        first_images,
        flops_per_token,
        text_only,
    )
    from experiments.demo.report import stage_facts, write_report
    from mmframe.data.demo import load_questions, load_text
    from mmframe.evaluation import check_language
    from mmframe.loading import load

    done = {f.parent: json.loads(f.read_text()) for f in args.run_dir.glob("*/done.json")}
    folders = sorted(done, key=lambda folder: done[folder]["finished"])
    texts = load_text()[:TEXTS]
    held_out = first_images(load_questions("easy_vqa", "val"), min(VALIDATION_IMAGES, args.images or VALIDATION_IMAGES))
    model = load(folders[-1])
    base_net = base_language_model(model, model.metadata["model"])
    base = check_language(base_net, model.processor, texts)
    dtype = next(model.net.parameters()).dtype
    peak = matmul_peak(dtype)
    stages = []
    for folder in folders:
        model = load(folder)
        stage = stage_facts(folder)
        trained = [row for row in model.metadata["freezing"] if row["group"]]
        language = check_language(model.net, model.processor, texts)
        stage |= {
            "text_nll": language.nll,
            "text_logits_bit_identical": language.digest == base.digest,
            "trainable": sum(row["parameters"] for row in trained),
            "trains_text": any(not _is_visual(row["component"]) for row in trained),
        }
        stage["share_of_peak"] = None
        if stage["name"] != WARM_START:
            work = flops_per_token(model.net, stage["image_share"], stage["trains_text"])
            stage["share_of_peak"] = work * (stage["tokens_per_s"] or 0) / peak
            accuracy = Accuracy.of(held_out, ask(model, held_out))
            stage |= {"open": accuracy.open, "yes_no": accuracy.yes_no, "all": accuracy.all}
            print(f"{folder.name}: open {accuracy.open:.1f}, yes/no {accuracy.yes_no:.1f}, text NLL {language.nll:.3f}")
        stages.append(stage)

    test = load_questions("easy_vqa", "test")
    test = first_images(test, args.images) if args.images else test
    seen = Accuracy.of(test, ask(model, test))
    blind = Accuracy.of(test, ask(model, test, blind=True))
    wording = text_only(load_questions("easy_vqa", "train"), test)
    shown, names = _sheet(model, ask)
    frozen = list(takewhile(lambda s: not s["trains_text"], stages))
    report = {
        "easy_vqa_accuracy": seen.all,
        "easy_vqa_open_accuracy": seen.open,
        "easy_vqa_yes_no_accuracy": seen.yes_no,
        "blind_accuracy": blind.all,
        "blind_open_accuracy": blind.open,
        "blind_yes_no_accuracy": blind.yes_no,
        "text_only_accuracy": wording.all,
        "text_only_open_accuracy": wording.open,
        "text_only_yes_no_accuracy": wording.yes_no,
        "test_questions": seen.questions,
        "validation_questions": len(held_out),
        "text_logits_bit_identical": bool(frozen) and all(s["text_logits_bit_identical"] for s in frozen),
        "stages_with_frozen_text": [s["name"] for s in frozen],
        "base_text_nll": base.nll,
        "text_nll": stages[-1]["text_nll"],
        "text_tokens": base.tokens,
        "names_accuracy": 100 * sum(a == q.answer for q, a in names) / max(1, len(names)),
        "names_questions": len(names),
        "train_minutes": sum(s["minutes"] for s in stages),
        "peak_memory_gib": max(s["peak_memory_gib"] or 0 for s in stages),
        "matmul_peak_gflops": peak / 1e9,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_name(),
        "seed": args.seed,
        "recipe": args.recipe,
        "data": ", ".join(_data_used(args.run_dir / stages[-1]["name"])),
        "command": "python -m experiments.demo " + " ".join(sys.argv[1:]),
        "when": time.strftime("%Y-%m-%d"),
        "full_tuning": json.loads(FULL_TUNING.read_text()) if FULL_TUNING.is_file() else None,
    }
    write_report(args.run_dir, report, stages)
    validated = {"open": wording.open, "yes_no": wording.yes_no}
    draw_curves(args.run_dir / "curves.png", stages, validated)
    draw_contact_sheet(args.run_dir / "contact_sheet.png", shown)
    return report


def _sheet(model: Any, ask: Any) -> tuple[list, list]:
    """Held-out pictures with the model's answers: for the contact sheet, and all names of emoji and flags."""
    from mmframe.data.demo import load_questions
    from mmframe.errors import UserError

    shown, names = [], []
    for source, count in SHEET:
        try:
            questions = load_questions(source, "test")
        except UserError:  # the source could not be fetched; the demo said so
            continue
        if source == "easy_vqa":
            pictures = list(dict.fromkeys(q.image for q in questions))
            of_picture = {path: [q for q in questions if q.image == path] for path in pictures[: 8 * count : 8]}
            chosen = [asked[n % len(asked)] for n, asked in enumerate(of_picture.values())]
            shown += list(zip(chosen, ask(model, chosen), strict=True))
        else:
            first = list({q.image: q for q in reversed(questions)}.values())[::-1]
            answered = list(zip(first, ask(model, first), strict=True))
            names += answered
            shown += answered[:: max(1, len(answered) // count)][:count]
    return shown, names


def _is_visual(component: str) -> bool:
    return component == "patch embedder" or component.endswith("visual")


def _data_used(folder: Path) -> list[str]:
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    return recipe["data"]["init_args"]["train"]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if not args.report_only:
        train(args)
    report = evaluate(args)
    print(SUMMARY.format(folder=args.run_dir, **report))


if __name__ == "__main__":
    main()
