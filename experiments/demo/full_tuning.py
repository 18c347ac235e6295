"""Delta tuning beside full tuning, from their reports: writes experiments/results/demo_full_tuning.json.

`python -m experiments.demo.full_tuning --delta runs/short --full runs/full_tuning`, after
`python -m experiments.demo --run-dir runs/short SAME` and
`python -m experiments.demo --recipe demo/full_tuning --run-dir runs/full_tuning SAME`, where SAME are equal overrides.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from experiments.bench.timing import write_result

KEYS = (
    "easy_vqa_accuracy",
    "easy_vqa_open_accuracy",
    "easy_vqa_yes_no_accuracy",
    "blind_accuracy",
    "blind_open_accuracy",
    "base_text_nll",
    "text_nll",
    "test_questions",
    "seed",
)


def row(name: str, folder: Path) -> dict[str, Any]:
    """One line of the comparison, with the peak text rate of the longest stage."""
    report = json.loads((folder / "report.json").read_text())
    longest = max(report["stages"], key=lambda stage: stage["minutes"])["name"]
    config = yaml.safe_load((folder / longest / "config.yaml").read_text())
    rate = config["model"]["freezing"]["init_args"].get("text_lr")
    steps = {stage["name"]: stage["steps"] for stage in report["stages"]}
    facts = {"name": name, "text_lr": rate, "steps": steps, "tokens": sum(s["tokens"] for s in report["stages"])}
    return facts | {key: report[key] for key in KEYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delta", type=Path, required=True, help="run directory of demo/evip_pp")
    parser.add_argument("--full", type=Path, nargs="+", required=True, help="run directories of demo/full_tuning")
    args = parser.parse_args()
    rows = [row("EViP++ (delta tuning)", args.delta), *(row("full tuning, no experts", f) for f in args.full)]
    same = " ".join(f"stages.{name}.trainer.max_steps={steps}" for name, steps in rows[0]["steps"].items())
    options = f"--images 100 {same} stages.s0_warm_start.trainer.val_check_interval={rows[0]['steps']['s0_warm_start']}"
    command = f"python -m experiments.demo --run-dir runs/short {options}; "
    command += f"python -m experiments.demo --recipe demo/full_tuning --run-dir runs/full_tuning {options}; "
    command += "python -m experiments.demo.full_tuning --delta runs/short --full runs/full_tuning"
    print(json.dumps(rows, indent=1))
    print(write_result("demo_full_tuning", command, {"runs": rows}))


if __name__ == "__main__":
    main()
