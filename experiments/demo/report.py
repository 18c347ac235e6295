"""Collects what the stages left behind and what was measured into report.json and report.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmframe.callbacks.jsonl import read_metrics


def stage_facts(folder: Path) -> dict[str, Any]:
    """Steps, minutes, tokens, losses and peak memory of a finished stage, from the files of its run directory."""
    done = json.loads((folder / "done.json").read_text())
    rows = read_metrics(folder / "metrics.jsonl")
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    speeds = [row["train/tokens_per_s"] for row in rows if "train/tokens_per_s" in row]
    shares = [row["train/image_token_share"] for row in rows if "train/image_token_share" in row]
    peaks = [row["memory/peak_rss_gib"] for row in rows if "memory/peak_rss_gib" in row]
    return {
        "name": folder.name,
        "steps": done["steps"],
        "minutes": round(done["seconds"] / 60, 2),
        "tokens": int(done["metrics"].get("train/tokens", 0)),
        "tokens_per_s": round(sorted(speeds)[len(speeds) // 2]) if speeds else None,
        "image_share": sum(shares) / len(shares) if shares else 0.0,
        "peak_memory_gib": round(max(peaks), 2) if peaks else None,
        "losses": losses,
        "open": None,
        "yes_no": None,
        "all": None,
    }


def write_report(folder: Path, report: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> None:
    """report.json (without the loss curves) and report.md."""
    rows = [{key: value for key, value in stage.items() if key != "losses"} for stage in stages]
    (folder / "report.json").write_text(json.dumps({**report, "stages": rows}, indent=2) + "\n")
    (folder / "report.md").write_text(_markdown(report, rows))


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _markdown(report: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    r = report
    ceiling = r["text_only_yes_no_accuracy"]
    sees = r["easy_vqa_yes_no_accuracy"] > ceiling
    verdict = (
        f"It beats the best answers from the text alone ({ceiling:.1f} %): it is answered by sight."
        if sees
        else f"It does not beat the best answers from the text alone ({ceiling:.1f} %), so it is "
        "not shown to be sight; `python -m experiments.demo --long` shows what more time gives."
    )
    lines = [
        "# What the demo model learned",
        "",
        f"SmolLM2-135M, recipe {r['recipe']}: {r['train_minutes']:.1f} minutes of training on {r['threads']} CPU "
        f"threads, {r['dtype']}, seed {r['seed']}, peak memory {r['peak_memory_gib']:.1f} GiB. Answers are "
        "free greedy text, compared exactly.",
        "",
        "![loss and accuracy](curves.png)",
        "",
        "| official test split of easy-vqa | all | open | yes / no |",
        "|---|---|---|---|",
        f"| with the picture | **{r['easy_vqa_accuracy']:.1f}** | **{r['easy_vqa_open_accuracy']:.1f}** | "
        f"**{r['easy_vqa_yes_no_accuracy']:.1f}** |",
        f"| the same model, black picture | {r['blind_accuracy']:.1f} | {r['blind_open_accuracy']:.1f} | "
        f"{r['blind_yes_no_accuracy']:.1f} |",
        f"| best answer from the wording (counted on train) | {r['text_only_accuracy']:.1f} | "
        f"{r['text_only_open_accuracy']:.1f} | {r['text_only_yes_no_accuracy']:.1f} |",
        "",
        f"Yes / no: {verdict} Published for all questions: 87.6 % (a CNN + LSTM).",
        "",
        "## Stage by stage",
        "",
        "| stage | steps | minutes | tokens | tokens/s | of matmul peak | trained parameters | open | yes / no "
        "| text NLL | text logits |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in stages:
        peak = f"{100 * s['share_of_peak']:.0f} %" if s["share_of_peak"] else ""
        same = "bit-identical" if s["text_logits_bit_identical"] else "changed (text weights train)"
        lines.append(
            f"| {s['name']} | {s['steps']} | {s['minutes']:.1f} | {s['tokens']:,} | {s['tokens_per_s']} | "
            f"{peak} | {s['trainable']:,} | {_number(s['open'])} | {_number(s['yes_no'])} | {s['text_nll']:.3f} | "
            f"{same} |"
        )
    lines += [
        "",
        f"Accuracy on {r['validation_questions']} questions about held-out training pictures. Base LLM: text NLL "
        f"{r['base_text_nll']:.3f} over {r['text_tokens']:,} tokens. `s0_warm_start` is ours, not EViP: it stands in "
        "for hundreds of millions of pairs.",
        "",
        "## The same budget on full tuning",
        "",
        *_full_tuning(r.get("full_tuning")),
        "",
        "## Held-out pictures",
        "",
        "![contact sheet](contact_sheet.png)",
        "",
        f"Names of {r['names_questions']} unseen emoji and flags: {r['names_accuracy']:.1f} % exact. That is honest: "
        "a name that never was in the training pictures cannot be guessed from minutes of training.",
        "",
        f"Data: {r['data']}. Command: `{r['command']}`.",
        "",
    ]
    return "\n".join(lines)


def _full_tuning(results: Mapping[str, Any] | None) -> list[str]:
    if not results:
        return ["Not measured yet: `python -m experiments.demo --recipe demo/full_tuning --run-dir runs/full_tuning`."]
    lines = [
        "| | text rate | all | open | yes / no | text NLL before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["runs"]:
        lines.append(
            f"| {row['name']} | {row['text_lr'] or 'frozen to s1_3'} | {row['easy_vqa_accuracy']:.1f} | "
            f"{row['easy_vqa_open_accuracy']:.1f} | {row['easy_vqa_yes_no_accuracy']:.1f} | "
            f"{row['base_text_nll']:.3f} | {row['text_nll']:.3f} |"
        )
    first = results["runs"][0]
    steps = " + ".join(str(count) for count in first["steps"].values())
    lines += ["", f"Both at {steps} steps, on {first['test_questions']:,} test questions, seed {first['seed']}."]
    return [*lines, "", f"Measured with `{results['command']}` ({results['when']})."]
