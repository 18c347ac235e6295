"""Mistakes are told in one line with the nearest match and exit code 2, before anything is loaded."""

import subprocess
import sys

import pytest

from mmframe.cli.main import main
from mmframe.cli.recipe import OVERLAYS, TASKS, recipe_root, shipped

MISTAKES = [
    # name of a class
    ("--model.router=SharedRuter", "'SharedRuter' is not a known router; did you mean 'SharedRouter'"),
    ("--model.router=Llama", "Llama is a backbone, not a router"),
    ("--model.processor.tokenizer=ByteTokeniser", "did you mean 'ByteTokenizer'"),
    ("--data=ToyDate", "data.class_path: 'ToyDate' is not a known data; did you mean 'ToyData'"),
    ("--model.router=no_such_package.Router", "'no_such_package.Router' is not a known router"),
    ("--trainer.callbacks+=Timmer", "'Timmer' is not a callback; did you mean 'Timer'"),
    # name of a key
    ("--model.rooter=SharedRouter", "the model has no argument 'rooter'; did you mean 'router'"),
    ("--model.router.initt=copy", "initt: ModalityRouter has no argument 'initt'; did you mean 'init'"),
    ("--data.batchsize=3", "ToyData has no argument 'batchsize'; did you mean 'batch_size'"),
    ("--max_steps=3", "unknown key 'max_steps'; did you mean 'trainer.max_steps'"),
    ("--stge=s1", "unknown key 'stge'; did you mean 'stage'"),
    # abbreviations are not taken
    ("--trainer.max_step=3", "the trainer has no argument 'max_step'; did you mean 'max_steps'"),
    ("--train.max_steps=3", "unknown key 'train'; did you mean 'trainer'"),
    # values
    ("--model.expert_backend=cpy", "'cpy' is not one of the allowed values; did you mean 'cupy'? allowed: auto, torch"),
    ("--trainer.max_steps=many", "trainer.max_steps: expected int, got 'many' (str)"),
    ("--trainer.max_steps=true", "trainer.max_steps: expected int, got True (bool)"),
    ("--trainer.detect_anomaly=3", "trainer.detect_anomaly: expected bool, got 3 (int)"),
    ("--model.backbone.hidden_size=big", "model.backbone.init_args.hidden_size: expected int"),
    ("--seed_everything=abc", "seed_everything: expected an integer, got 'abc'"),
    ("--checkpoint_every=-1", "checkpoint_every: expected a number of steps"),
    ("--model.router=null", "expected a router (class_path and init_args), got None; allowed: ModalityRouter"),
    ("--model.freezing=Everything", "Everything needs the argument 'text_lr' (float), and it is missing"),
    # our own flags
    ("--stage=s1_2", "no stage is called 's1_2'; did you mean 's1_2_semantic'"),
    ("--stages.s1_1.trainer.max_steps=3", "no stage is called 's1_1'; did you mean 's1_1_concept'"),
    ("--stages.s1_1_concept=3", "write --stages.s1_1_concept.KEY=VALUE"),
    ("--dry-run=yes", "--dry-run is a switch and takes no value"),
    ("--stage", "--stage needs a value"),
    ("-x", "'-x' is not an option"),
]  # fmt: skip


@pytest.mark.parametrize("flag, message", MISTAKES, ids=[flag for flag, _ in MISTAKES])
def test_mistakes_on_the_command_line(fails, flag, message):
    line = fails("fit", "--config", "toy/evip_pp", flag)
    assert message in line
    assert len(line) < 600


def test_mistakes_in_a_file_name_file_and_line(fails, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "base: toy/evip_pp\nmodel:\n  router:\n    init_args:\n      init: copy\n      sites: all\n"
    )
    line = fails("fit", "--config", "mine.yaml")
    assert "mine.yaml:6: model.router.init_args.sites: ModalityRouter has no argument 'sites'" in line
    (tmp_path / "late.yaml").write_text("base: toy/evip_pp\nstages:\n  s2_instruction:\n    trainer: {max_stepz: 1}\n")
    assert "late.yaml:4: trainer.max_stepz" in fails("fit", "--config", "late.yaml")
    (tmp_path / "flat.yaml").write_text(
        "base: toy/evip_pp\nmodel:\n  router: {class_path: ModalityRouter, init: copy}\n"
    )
    assert "flat.yaml:3: model.router.init: unknown key 'init' beside class_path" in fails(
        "fit", "--config", "flat.yaml"
    )


def test_unknown_recipes_and_commands(fails):
    assert "no recipe 'toy/evipp': neither a file nor a shipped recipe; did you mean 'toy/evip" in fails(
        "fit", "toy/evipp"
    )
    assert "unknown command 'fitt'; did you mean 'fit'" in fails("fitt")
    assert "did you mean 'validate'" in fails("recipes", "valdate")
    assert "did you mean 'router'" in fails("components", "ls", "ruoter")
    assert "did you mean 'ModalityRouter'" in fails("components", "show", "ModalRouter")
    assert "no recipe: give one with --config" in fails("fit", "--trainer.max_steps=3")


def test_every_shipped_recipe_is_valid(cli):
    code, out, _ = cli("recipes", "validate")
    yaml = (file for file in recipe_root().rglob("*.yaml") if not file.name.startswith("_"))
    files = [file for file in yaml if file.parent.name not in (TASKS, OVERLAYS)]
    assert code == 0, out
    assert len(out.splitlines()) == len(files) == len(shipped()) >= 5
    assert all(line.startswith("ok ") for line in out.splitlines())


def test_swapping_a_class_needs_one_key(cli):
    code, out, _ = cli("fit", "toy/evip", "--model.router=SharedRouter", "--model.freezing={class_path: EmbedderOnly, "
                       "init_args: {lr: 1e-3}}", "--dry-run")  # fmt: skip
    assert code == 0 and out.count("router SharedRouter") == 4


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="unknown command"):
        main(["fitt", "--debug"])


LIGHT = """
import sys
from mmframe.cli.main import main
words = [["--help"], ["--version"], ["fit", "--help"], ["recipes", "ls"], ["recipes", "show", "toy/evip"],
         ["recipes", "validate"], ["components", "ls"], ["components", "ls", "router"],
         ["components", "show", "ModalityRouter"], ["doctor", "--no-torch"], ["fit", "toy/evip_pp", "--dry-run"],
         ["ablate", "--help"], ["ablate", "report", "--help"]]
for line in words:
    assert main(line) == 0, line
assert main(["fit", "toy/evip", "--model.router=SharedRuter"]) == 2
heavy = {"torch", "lightning", "numpy", "jsonargparse", "components", "mmframe.module"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_lists_and_mistakes_load_neither_torch_nor_lightning():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
