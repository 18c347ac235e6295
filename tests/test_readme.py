"""P39: the commands of the README and of the docs run, and set-up stays at two commands."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from mmframe.cli.main import main
from tests.cli.served import picture, tiny_model, write_rows
from tests.cli.test_finetune import QUICK, official_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


LINES = [line for block in blocks("sh") for line in block.splitlines() if re.match(r"(lightning|mmframe) ", line)]
EVALUATES = [line for line in LINES if re.search(" evaluate |TaskData", line)]
NEEDS_A_MODEL = [
    line for line in LINES if re.search("--model |import|--start_from|web", line) and line not in EVALUATES
]
NEEDS_DATA = [line for line in LINES if " data " in line or "data/offline" in line]
ABLATES = [line for line in LINES if " ablate " in line]
NEEDS_RUNS = [line for line in LINES if re.match("mmframe (runs|watch|diff)", line)]
APART = EVALUATES + NEEDS_A_MODEL + NEEDS_DATA + ABLATES + NEEDS_RUNS
COMMANDS = [line for line in LINES if line not in APART and not re.search("doctor|replay", line)]
"""`replay` needs a run that went wrong: tests/faults."""


def test_set_up_is_two_commands_and_they_exist() -> None:
    set_up = README.split("## Set up")[1].split("```")[1].split()
    assert set_up == ["make", "demo", "make", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.M) and re.search(r"^test:", makefile, re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)[1:]
    if words[0] == "plan":  # at full size: tests/plan
        words = [{"evip_pp": "toy/evip_pp", "256": "8"}.get(word, word) for word in words]
    if words[0] == "fit" and "--dry-run" not in words:
        words += ["--run-dir", str(tmp_path / "run"), "--in-process", "--trainer.max_steps=2"]
    monkeypatch.chdir(ROOT)
    assert main(words) == 0


def test_commands_of_the_readme_that_need_a_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, in a folder where tiny stand-ins have the names that the README uses."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model(tmp_path / "MODEL")
    shutil.copytree(model, tmp_path / "runs" / "demo" / "s2_instruction")
    picture(tmp_path / "a.png")
    write_rows(tmp_path / "in.jsonl", [{"id": 1, "image": "a.png", "prompt": "What is it?"}])
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Noise."}]
    write_rows(tmp_path / "my.jsonl", [{"id": 1, "image": "a.png", "conversations": talk}])
    hub = official_folder(tmp_path / "official")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *words, **more: str(hub))
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n"))
    assert [line.split()[1] for line in NEEDS_A_MODEL] == ["chat", "generate", "web", "import", "fit"]
    for command in NEEDS_A_MODEL:
        words = shlex.split(command, comments=True)[1:]
        words += {"web": ["--help"], "fit": QUICK, "chat": ["--max-new-tokens=4"]}.get(words[0], [])
        assert main(words) == 0, (command, capsys.readouterr().err)
    assert "answer" in (tmp_path / "out.jsonl").read_text()
    assert (tmp_path / "runs" / "finetune" / "weights.safetensors").is_file()


def test_commands_of_the_readme_about_data_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, on the one source that the test environment has installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert [line.split()[1:3] for line in NEEDS_DATA] == [
        ["data", "offline"], ["data", "plan"], ["data", "show"], ["fit", "--config"],
    ]  # fmt: skip
    for command in NEEDS_DATA:
        words = shlex.split(command, comments=True)[1:]
        words += {"offline": ["--only", "easy_vqa"]}.get(words[1], [])
        words += ["--in-process", "--trainer.max_steps=2", "--trainer.limit_val_batches=1"] if words[0] == "fit" else []
        assert main(words) == 0, command
    assert (tmp_path / "runs" / "toy" / "dense+mixture" / "data" / "show.png").is_file()


def test_commands_of_the_readme_about_scores_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, on a task that needs no files."""
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "MODEL")
    assert [line.split()[1:3] for line in EVALUATES] == [
        ["evaluate", "tasks"], ["evaluate", "tasks"], ["evaluate", "--model"], ["evaluate", "report"],
        ["evaluate", "browse"], ["test", "--config"],
    ]  # fmt: skip
    for command in EVALUATES:
        words = shlex.split(command.replace("easy_vqa_test", "toy_shapes"), comments=True)[1:]
        words = [word.replace(",wordnet_choice", ",toy_choice") for word in words]
        words += ["--in-process"] if words[0] == "test" else []
        assert main(words) == 0, command
    assert (tmp_path / "results" / "MODEL" / "toy_choice" / "result.json").is_file()


def test_commands_of_the_readme_about_runs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", "toy/evip_pp", "--in-process", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    assert main(fit) == 0
    for name, seed in (("a", 1), ("b", 2)):
        assert main([*fit, "--stage=s1_1_concept", f"--run-dir=runs/{name}", f"--seed_everything={seed}"]) == 0
    capsys.readouterr()
    assert [line.split()[1] for line in NEEDS_RUNS] == ["runs", "watch", "diff"]
    said = []
    for command in NEEDS_RUNS:
        code = main(shlex.split(command, comments=True)[1:])
        assert code == int("diff" in command), (command, capsys.readouterr().err)  # as diff: 1 where they differ
        said.append(capsys.readouterr().out)
    assert all("s2_instruction" in words for words in said[:2]) and "done" in said[0]
    assert "seed_everything" in said[2] and "max_steps" not in said[2]


def test_commands_of_the_readme_about_ablations_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same three commands run for real, on a grid of its own, in tests/test_docs.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    dry, whole, report = (shlex.split(command, comments=True)[1:] for command in ABLATES)
    assert main(dry) == 0
    planned = capsys.readouterr().out
    assert dry == [*whole, "--dry-run"] and "none-s0" in planned and "ffn-s1" in planned
    folder = re.search(r"results in (\S+)", planned)
    assert folder and report == ["ablate", "report", folder[1]]


def test_python_of_the_readme_talks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "runs" / "demo" / "s2_instruction")
    picture(tmp_path / "picture.png")
    exec(compile(next(block for block in blocks("python") if "Engine" in block), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_python_of_the_readme_adds_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmframe import registry

    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    source = next(block for block in blocks("python") if "@register" in block)
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(compile(source, "README.md", "exec"), namespace)
    assert registry.get("router", "BoundaryRouter") is namespace["BoundaryRouter"]
