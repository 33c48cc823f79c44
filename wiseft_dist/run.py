"""A run is a directory. This file knows its layout, whose directory it is, and what is done already."""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.commits import is_committed, read_commit, sync, write_atomically
from wiseft_dist.config import RunConfig, dump_config, load_config
from wiseft_dist.errors import RunError, UserError

ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
CARD_FILE = "README.md"
"""Beside an ensemble: its model card, which is no part of the commit."""
FIGURES = ("curve", "curve_logit", "datasets")
"""Of a report: the paper's figure, the same on logit axes, and a small one for each dataset."""
FIGURE_FORMATS = ("png", "svg", "pdf")
IDENTITY = (
    "seed",
    "model",
    *(f"data.{name}" for name in ("train", "classnames", "templates", "id_val_fraction")),
    *(f"data.{name}" for name in ("augment", "lanes", "block_samples")),
    "finetune",
    *(f"merge.{name}" for name in ("method", "models", "layers", "lines", "density", "seed", "fisher")),
    *(f"merge.{name}" for name in ("dtype", "max_shard_size")),
)
"""Settings that decide what the weights are: a run directory belongs to one value of each."""
FREE = (
    *(f"finetune.{name}" for name in ("log_every", "checkpoint.", "validation.", "max_bad_steps", "peak_tflops")),
    *(f"finetune.{name}" for name in ("micro_batch_size", "zero_stage", "offload_optimizer", "features")),
    *(f"finetune.{name}" for name in ("activation_checkpointing", "compile")),
)
"""Settings inside those sections that do not, and may change between two sessions."""


@dataclass(frozen=True)
class Run:
    """The paths of a run directory."""

    path: Path
    training: str = "finetune"
    """Which of its trainings the checkpoints and the head are of: ``lp_ft`` has one before the last."""

    @property
    def config_file(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def events_file(self) -> Path:
        """Every metric and state change, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def id_file(self) -> Path:
        """What tells this directory from every other, whatever its path is."""
        return self.path / "id"

    @property
    def manifests(self) -> Path:
        """Manifests of the training shards and of every test set."""
        return self.path / "shards"

    @property
    def zero_shot(self) -> Path:
        """theta_0: open_clip weights, configuration and the head."""
        return self.path / "zero_shot"

    @property
    def checkpoints(self) -> Path:
        """DeepSpeed's sharded training state, one folder a saved step."""
        return self.path / self.training / "checkpoints"

    @property
    def finetuned_head(self) -> Path:
        """A head that was computed from a finished training: of ``flyp``, and of the first training of ``lp_ft``."""
        return self.path / self.training / "head"

    @property
    def merged(self) -> Path:
        """Written ensembles."""
        return self.path / "merge"

    @property
    def cells(self) -> Path:
        """Per-sample predictions and metrics."""
        return self.path / "evaluate" / "cells"

    @property
    def report(self) -> Path:
        """Results, curve and page."""
        return self.path / "report"

    @property
    def results_file(self) -> Path:
        """Accuracy of every alpha on every dataset."""
        return self.report / "results.csv"

    @property
    def statistics_file(self) -> Path:
        """Every number of the report."""
        return self.report / "statistics.json"

    @property
    def selection_file(self) -> Path:
        """The chosen alphas and how they were chosen."""
        return self.report / "selection.json"

    @property
    def report_files(self) -> tuple[Path, ...]:
        """Every file of the report."""
        figures = [self.report / f"{name}.{suffix}" for name in FIGURES for suffix in FIGURE_FORMATS]
        page = self.report / "index.html"
        return (page, *figures, self.results_file, self.statistics_file, self.selection_file)

    @property
    def jobs(self) -> Path:
        """Submitit's folder."""
        return self.path / "jobs"

    @property
    def lock_file(self) -> Path:
        """Locked by the `wiseft run` that is at work."""
        return self.jobs / "lock"

    @property
    def soup_file(self) -> Path:
        """Which models a greedy soup is made of, and every accuracy that decided it."""
        return self.merged / "soup.json"

    def ensemble(self, alpha: float) -> Path:
        """The folder of one written ensemble."""
        return self.merged / alpha_name(alpha)

    def load_config(self) -> RunConfig:
        """The run's resolved configuration.

        Raises:
            UserError: if the directory is not a run.
        """
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is not a run directory: it has no config.yaml. Start one with `wiseft run`.")
        return load_config(self.config_file)

    def final_checkpoint(self) -> Path | None:
        """The committed checkpoint of the last step, if fine-tuning is finished."""
        newest = newest_checkpoint(self)
        return newest if newest is not None and read_commit(newest)["final"] else None

    def finished_checkpoint(self) -> Path:
        """The last checkpoint.

        Raises:
            RunError: if fine-tuning has not finished.
        """
        checkpoint = self.final_checkpoint()
        if checkpoint is None:
            raise RunError(f"{self.path}: fine-tuning has not finished. Run `wiseft finetune {self.path}` first.")
        return checkpoint


def alpha_name(alpha: float) -> str:
    """``alpha_0.50``; more digits only where two do not tell alphas apart."""
    two_digits = f"{alpha:.2f}"
    return f"alpha_{two_digits if float(two_digits) == alpha else repr(float(alpha))}"


def open_run(config: RunConfig) -> Run:
    """Create or reopen the run directory of a configuration and write the configuration to it.

    Raises:
        UserError: if the directory holds another run, naming the settings that differ, or other files.
    """
    run = find_run(config)
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.config_file, dump_config(config))
    run_id(run)
    return run


def run_id(run: Run) -> str:
    """Eight letters and digits that belong to this directory: one that is deleted and made anew is another run.

    They are chosen once; of several processes that ask at once, one chooses for all.

    Raises:
        UserError: if there are none yet and none can be written.
    """
    while not (known := _read_id(run)):
        aside = run.id_file.with_name(f".id.{uuid.uuid4().hex[:8]}")
        try:
            aside.write_text("".join(secrets.choice(ID_LETTERS) for _ in range(8)) + "\n")
        except OSError as error:
            raise UserError(
                f"{run.path} has no id yet, and none can be written there ({error.strerror}): let its owner do this, "
                "or work on a copy."
            ) from error
        try:
            sync(aside)
            os.link(aside, run.id_file)  # unlike a rename, never over what another process has written
        except FileExistsError:
            if not _read_id(run):  # emptied by whatever broke
                aside.rename(run.id_file)
        except OSError:  # a file system without hard links
            aside.rename(run.id_file)
        finally:
            aside.unlink(missing_ok=True)
    return known


def _read_id(run: Run) -> str:
    try:
        return run.id_file.read_text().strip()
    except FileNotFoundError:
        return ""


def find_run(config: RunConfig) -> Run:
    """The run of a configuration, whether or not it exists. Writes nothing.

    Raises:
        UserError: as :func:`open_run`.
    """
    run = Run(Path(config.output).absolute())
    if run.config_file.is_file():
        _refuse_another_run(run, config)
    elif run.path.is_dir() and any(path not in (run.jobs, run.lock_file) for path in run.path.rglob("*")):
        raise UserError(f"output: {run.path} holds other files and no run. Choose a new or an empty directory.")
    return run


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what the weights are, by their dotted names."""
    tree = config.model_dump(mode="json")
    keys = (key for section in IDENTITY for key in _leaves(_at(tree, section), section))
    return {key: _at(tree, key) for key in keys if not key.startswith(FREE)}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What two identities differ in, a phrase for each setting."""
    return [
        f"{key} is {here.get(key)!r} here and {there.get(key)!r} there"
        for key in {**here, **there}
        if here.get(key) != there.get(key)
    ]


def _refuse_another_run(run: Run, config: RunConfig) -> None:
    differing = differences(identity(config), identity(run.load_config()))
    if differing:
        raise UserError(
            f"output: {run.path} is the directory of another run: {'; '.join(differing)}. "
            "Choose another output, or put the settings back."
        )


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _leaves(tree: Any, prefix: str) -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{prefix}.{name}")]


def newest_checkpoint(run: Run) -> Path | None:
    """The committed checkpoint with the most steps."""
    committed = committed_checkpoints(run)
    return committed[-1] if committed else None


def committed_checkpoints(run: Run) -> list[Path]:
    """Committed checkpoints by rising step."""
    folders = run.checkpoints.glob("step_*") if run.checkpoints.is_dir() else iter(())
    return sorted(filter(is_committed, folders), key=lambda folder: int(folder.name.removeprefix("step_")))
