"""Gathers report.json of several seeds of the demo into one committed result, with mean and standard deviation.

`python -m experiments.demo.seeds runs/seed0 runs/seed1 runs/seed2` after
`for s in 0 1 2; do python -m experiments.demo --seed $s --run-dir runs/seed$s; done`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from experiments.bench.timing import write_result

KEYS = (
    "easy_vqa_accuracy",
    "easy_vqa_open_accuracy",
    "easy_vqa_yes_no_accuracy",
    "blind_accuracy",
    "blind_open_accuracy",
    "blind_yes_no_accuracy",
    "text_only_accuracy",
    "text_only_open_accuracy",
    "text_only_yes_no_accuracy",
    "names_accuracy",
    "base_text_nll",
    "text_nll",
    "train_minutes",
    "peak_memory_gib",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories that hold a report.json")
    parser.add_argument("--name", default="demo_seeds", help="of the result file")
    args = parser.parse_args()
    reports = [json.loads((run / "report.json").read_text()) for run in args.runs]
    for report in reports:
        report.pop("full_tuning", None)  # a result of its own
    summary = {
        key: {
            "mean": statistics.mean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
            "values": values,
        }
        for key, values in ((key, [report[key] for report in reports]) for key in KEYS)
    }
    exact = all(report["text_logits_bit_identical"] for report in reports)
    command = "for s in 0 1 2; do python -m experiments.demo --seed $s --run-dir runs/seed$s; done; "
    command += "python -m experiments.demo.seeds runs/seed0 runs/seed1 runs/seed2"
    figures = {"summary": summary, "text_logits_bit_identical": exact, "reports": reports}
    print(json.dumps(summary, indent=1))
    print(write_result(args.name, command, figures))


if __name__ == "__main__":
    main()
