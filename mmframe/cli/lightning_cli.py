"""LightningCLI without its traps: takes our resolved configuration, writes our run directory, tells one-line errors."""

from __future__ import annotations

import copy
import logging
import re
import sys
import warnings
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from mmframe import registry, strategies
from mmframe.callbacks.breakdown import Breakdown
from mmframe.callbacks.elastic import Elastic
from mmframe.callbacks.flops import Flops
from mmframe.callbacks.heartbeat import Heartbeat
from mmframe.callbacks.jsonl import JsonlLogger
from mmframe.callbacks.keep_checkpoints import KeepCheckpoints
from mmframe.callbacks.learning_rates import LearningRates
from mmframe.callbacks.predictions import Predictions
from mmframe.callbacks.progress import StageProgress
from mmframe.callbacks.step_guard import StepGuard
from mmframe.callbacks.task_scores import TaskScores
from mmframe.callbacks.throughput import Throughput
from mmframe.callbacks.utilisation import Utilisation
from mmframe.checkpoint_io import CheckpointWriter, disk_full
from mmframe.cli import loggers
from mmframe.cli.job import Job
from mmframe.cli.malloc import keep_freed_memory
from mmframe.cli.record import RunRecord
from mmframe.cli.run_dir import is_rank_zero
from mmframe.cli.safety import read_checkpoints, read_faults
from mmframe.contracts import check_fp16
from mmframe.data.loader_watch import Watched
from mmframe.errors import UserError, nearest
from mmframe.lost_rank import RankLost, lost_rank

CHECKPOINT_EVERY = 200
OURS = ("checkpoint_every", "checkpoints", "faults")
"""Keys of a recipe that LightningCLI does not know."""


class OneLineParser(LightningArgumentParser):
    """Errors of the parser become a UserError of one line, with the nearest key where one is near."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        raise UserError(one_line(message, [a.dest for a in self._actions])) from ex


def one_line(message: str, keys: list[str]) -> str:
    """The telling part of a jsonargparse message, which is often a page long.

    Args:
        message: As given to `error`.
        keys: Known keys, for a did-you-mean.
    """
    lines = [line.strip(" -*") for line in message.splitlines() if line.strip(" -*")]
    text = " ".join(lines)
    bad = re.search(
        r"(?:[Oo]ption|key|[Uu]nrecognized arguments:) ['\"]?-*([\w.]+)['\"]? (?:is not accepted|not expected)", text
    )
    hint = nearest(bad.group(1), keys) if bad else ""
    return f"{text[:700]}{' ...' if len(text) > 700 else ''} {hint}".strip()


class MMFrameCLI(LightningCLI):
    """Builds model, data and trainer of one job, and runs it.

    Args:
        job: What to run.
        args: Words of the command line instead of the job's configuration (only for `fit --help-all`).
    """

    def __init__(self, job: Job, record: RunRecord, args: list[str] | None = None) -> None:
        from mmframe.data import MultimodalData
        from mmframe.module import MultimodalModule

        registry.discover()
        strategies.register()
        self.job = job
        self.record = record
        self.words = args
        super().__init__(
            MultimodalModule,
            MultimodalData,
            subclass_mode_data=True,
            save_config_callback=None,  # RunRecord does it: for fit only, never over an earlier file
            seed_everything_default=0,
            trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10},
            parser_class=OneLineParser,
            parser_kwargs={"allow_abbrev": False},
            auto_configure_optimizers=False,  # would take frozen parameters too; `model.optim` does it
            load_from_checkpoint_support=False,  # the module records the specs of its components itself
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The job's command alone: a parser for each of Lightning's four takes half a second."""
        return {self.job.command: LightningCLI.subcommands()[self.job.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments(
            "model.backbone",
            "model.patch_embedder.init_args.hidden_size",
            compute_fn=_hidden_size,
            apply_on="instantiate",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if self.words is not None:
            self.config = parser.parse_args(self.words)
            return
        tree = qualify(copy.deepcopy(self.job.config))
        for key in OURS:
            tree.pop(key, None)
        if self.job.handover.init_from is not None:
            tree["model"]["init_from"] = self.job.handover.init_from
        if self.job.resume is not None:
            tree["ckpt_path"] = str(self.job.resume)
            tree["model"]["init_from"] = None  # the checkpoint holds all weights
        trainer = tree.setdefault("trainer", {})
        if trainer.get("default_root_dir") is None:
            trainer["default_root_dir"] = str(self.job.run.path)
        if self.job.command == "fit":
            trainer["logger"] = loggers.filled_in(trainer.get("logger"), self.job)
        self.config = parser.parse_object({"subcommand": self.job.command, self.job.command: tree})

    def _parse_ckpt_path(self) -> None:
        """Nothing: LightningCLI would put the checkpoint's hyper-parameters over the recipe and the command line."""

    def before_instantiate_classes(self) -> None:
        parser = self._parser(self.subcommand)
        settings = self.config[str(self.subcommand)].clone()
        if self.job.resume is not None:  # the same run as before: its record must not change
            settings.ckpt_path = None
            settings.model.init_from = self.job.handover.init_from or self.job.config["model"].get("init_from")
        self.record.config_text = parser.dump(settings, skip_unset=False, skip_link_targets=True)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if hasattr(self.datamodule, "timeout"):
            self.datamodule.timeout = read_faults(self.job.config).data_timeout
        module: Any = self.model
        ids, rows = module.processor.tokenizer.vocab_size, module.net.backbone.vocab_size
        if ids > rows:  # else an index error in the embedding, some batches later
            raise UserError(
                f"model: the tokenizer has {ids:,} ids, the backbone's embedding {rows:,} rows; "
                "`mmframe import --image-tokens` gives a text LLM the rows of InternVL's image tokens"
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        settings = dict(self._get(self.config_init, "trainer"))
        check_fp16(str(settings.get("precision")))  # here, because Lightning turns 16-mixed into bf16 on a CPU
        bare = bool(settings.get("barebones"))
        if self.job.command == "fit" and not bare:
            kwargs["logger"] = self._loggers(settings.get("logger"), settings)
        elif settings.get("logger") in (None, True):
            kwargs["logger"] = False
        callbacks = [*_listed(settings.get("callbacks")), *([] if bare else self._callbacks(settings))]
        # tasks are asked after the step was counted, and at the end after the weights were written
        kwargs["callbacks"] = sorted(callbacks, key=lambda callback: isinstance(callback, TaskScores))
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:  # e.g. an accelerator that is not there
            raise UserError(f"trainer: {error}") from error
        own_writer = any(isinstance(plugin, CheckpointIO) for plugin in _listed(settings.get("plugins")))
        if not own_writer and not strategies.is_deepspeed(trainer.strategy):  # which writes files of its own
            trainer.strategy.checkpoint_io = CheckpointWriter(read_checkpoints(self.job.config).background)
        if "rank_timeout" in (self.job.config.get("faults") or {}) and hasattr(trainer.strategy, "_timeout"):
            strategy: Any = trainer.strategy
            strategy._timeout = timedelta(seconds=read_faults(self.job.config).rank_timeout)
        return trainer

    def _callbacks(self, settings: dict[str, Any]) -> list[Callback]:
        own = _listed(settings.get("callbacks"))
        added: list[Callback] = [self.record]
        if self.job.command == "fit":
            for counts in (Throughput, Flops, Utilisation, Breakdown, LearningRates):
                if not any(isinstance(c, counts) for c in own):
                    added.append(counts())
            added.append(Elastic())
            added.append(StepGuard(read_faults(self.job.config), self.job.run.path))
            if not settings.get("fast_dev_run"):
                added.append(Heartbeat(self.job.run.path, self.job.handover))
            saves = settings.get("enable_checkpointing") is not False and not settings.get("fast_dev_run")
            if saves and not any(isinstance(c, ModelCheckpoint) for c in own):
                every = self.job.config.get("checkpoint_every", CHECKPOINT_EVERY)
                added.append(KeepCheckpoints(self.job.run.last.parent, every, read_checkpoints(self.job.config)))
        if self.job.command == "predict":
            added.append(Predictions(self.job.run.path))
        shows = settings.get("enable_progress_bar") is not False
        if shows and not any(isinstance(c, ProgressBar) for c in own):
            added.append(StageProgress(self.job.handover))
        return added

    def _loggers(self, given: Any, settings: dict[str, Any]) -> list[Logger] | bool:
        if given is False or settings.get("fast_dev_run"):
            return False
        folder = self.job.run.path
        jsonl = JsonlLogger(folder)
        if given not in (None, True):
            return [*_listed(given), jsonl]
        if find_spec("tensorboard") is None:
            return [jsonl]
        # name and version "" put the event files into the run directory itself
        return [jsonl, TensorBoardLogger(folder.parent, name=folder.name, version="")]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _hidden_size(backbone: Any) -> int:
    return backbone.hidden_size


def qualify(tree: Any) -> Any:
    """Bare names of registered classes become dotted paths: no clash with other classes or with files in the cwd."""
    if isinstance(tree, list):
        return [qualify(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    out = {key: qualify(value) for key, value in tree.items()}
    name = out.get("class_path")
    for cls in registry.classes() if isinstance(name, str) and "." not in name else ():
        if cls.__name__ == name:
            out["class_path"] = registry.place(cls)
    return out


def run_job(job: Job) -> int:
    """Runs one job in this process.

    Returns:
        0; or 143 after SIGTERM and 130 after Ctrl-C, with a checkpoint to continue from.

    Raises:
        UserError: For the user's mistakes, also those that Lightning finds.
    """
    keep_freed_memory()
    record = RunRecord(job)
    if not job.debug:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's own affair
        warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero")  # no validation data
    try:
        if is_rank_zero() and job.command == "fit":
            with job.run.locked():
                job.run.start(job.config)
                cli = MMFrameCLI(job, record)
                record.finish(cli.trainer)
        else:
            cli = MMFrameCLI(job, record)
    except MisconfigurationException as error:
        raise UserError(f"{job.label} {error} (--debug shows where)") from error
    except (OSError, RuntimeError, ValueError) as error:
        if (line := Watched.death(error)) is not None:
            raise UserError(line) from error
        if (said := lost_rank(error)) is not None:
            where = f"rank {torch.distributed.get_rank()} of {torch.distributed.get_world_size()}"
            raise RankLost(
                f"{job.label} {where}: another rank is gone or does not answer ({said}); the same command continues "
                "from the last checkpoint"
            ) from error
        if (why := disk_full(error)) is None:
            raise
        raise UserError(
            f"{job.label} {why}: {error}; the last checkpoint is whole; make room, and the same command continues"
        ) from error
    except SystemExit as stop:
        if record.ended == "SIGTERM":
            say(f"{job.label} stopped by SIGTERM; the same command continues it")
            return 143
        if record.ended == "SIGINT":
            say(f"{job.label} stopped by Ctrl-C; the same command continues it")
            return 130
        return stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    if job.command == "fit" and cli.trainer.received_sigterm:
        return 130 if record.keyboard else 143  # after the last step: the stage is done, but the chain must stop
    return 0


def say(text: str) -> None:
    """One line on stderr, from the first rank only."""
    if is_rank_zero():
        print(text, file=sys.stderr, flush=True)


def help_all(command: str) -> int:
    """Prints LightningCLI's own help: every key."""
    from mmframe.cli.run_dir import RunDir

    job = Job(command, {}, RunDir(Path("runs")))
    try:
        MMFrameCLI(job, RunRecord(job), [command, "--help"])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
