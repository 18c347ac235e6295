"""How long a user waits: help, lists, imports, a toy recipe. Whole processes, median of several.

`python -m experiments.bench.startup` writes experiments/results/startup.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from experiments.bench.timing import write_result

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "mmframe --help": ["-m", "mmframe", "--help"],
    "mmframe recipes ls": ["-m", "mmframe", "recipes", "ls"],
    "mmframe components ls": ["-m", "mmframe", "components", "ls"],
    "mmframe fit --dry-run": ["-m", "mmframe", "fit", "--config", "demo/evip_pp", "--dry-run"],
    "import torch": ["-c", "import torch"],
    "import lightning": ["-c", "import lightning.pytorch"],
    "import mmframe.module": ["-c", "import mmframe.module"],
}
TOYS = ("toy/evip_pp", "toy/evip", "toy/dense")


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    figures: dict[str, float] = {}
    for name, words in COMMANDS.items():
        seconds(words)
        figures[name] = round(statistics.median(seconds(words) for _ in range(5)), 3)
    for name in TOYS:
        with tempfile.TemporaryDirectory() as folder:
            words = ["-m", "mmframe", "fit", "--config", name, "--run-dir", f"{folder}/run"]
            figures[f"fit {name}, a process for each stage"] = round(seconds(words), 1)
            figures[f"fit {name}, in one process"] = round(seconds([*words[:-1], f"{folder}/one", "--in-process"]), 1)
    print(figures)
    print(write_result("startup", "python -m experiments.bench.startup", {"seconds": figures}))


if __name__ == "__main__":
    main()
