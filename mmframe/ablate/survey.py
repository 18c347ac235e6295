"""Questions about models and data that need torch: answered by one process, kept in the results folder.

They are asked once: a sweep that is continued, or spread over machines, has the same steps and so the same runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mmframe.cli.recipe import recipe_hash
from mmframe.cli.run_dir import read_json, write_atomically
from mmframe.errors import UserError

Question = dict[str, Any]


class Survey:
    """Asks each question once.

    Args:
        folder: Where answers are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, questions: list[Question]) -> list[Any]:
        """Answers in the order of the questions; those that are not kept yet come from one process with torch.

        Raises:
            UserError: what that process says is wrong with a model or its data.
        """
        keys = [recipe_hash(question) for question in questions]
        wanted = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if "answer" not in read_json(self._file(key))
        }
        if wanted:
            self._find_out(wanted)
        return [read_json(self._file(key))["answer"] for key in keys]

    def _find_out(self, wanted: dict[str, Question]) -> None:
        print(f"survey: {len(wanted)} questions about models and data", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "mmframe.ablate.surveyor"],
            input=json.dumps(list(wanted.values())),
            capture_output=True,
            text=True,
        )
        told = done.stderr.strip().splitlines() or ["no message"]
        if done.returncode:
            raise UserError(f"survey of models and data: {told[-1].removeprefix('mmframe: error: ')}")
        answers = json.loads(done.stdout.strip().splitlines()[-1])
        self.folder.mkdir(parents=True, exist_ok=True)
        for (key, question), answer in zip(wanted.items(), answers, strict=True):
            kept = {"answer": answer, "question": question}
            write_atomically(self._file(key), json.dumps(kept, indent=1) + "\n")

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"
