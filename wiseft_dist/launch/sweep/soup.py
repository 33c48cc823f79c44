"""The soup of a sweep: an ordinary run that merges the fine-tuned models of all others, and trains nothing itself.

Its zero-shot model and its fine-tuning are links to those of the first run; the others are its ``merge.models``. What
it writes is keyed by what the models are: when runs join the sweep, only the settings are written anew, and ensembles
and results of other models than there are now are made again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.commits import write_atomically
from wiseft_dist.config import MergeConfig, ModelConfig, RunConfig, dump_config
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.job import StageJob
from wiseft_dist.launch.sweep.directory import Sweep, read_sweep
from wiseft_dist.launch.sweep.names import few
from wiseft_dist.pipeline import remaining
from wiseft_dist.run import Run, identity
from wiseft_dist.tracking import append_event
from wiseft_dist.visibility import wait_until_visible
from wiseft_dist.weights.finetuned import is_finetuned

COMMON = ("model", "data.train", "data.classnames", "data.templates", "data.id_val_fraction", "finetune.recipe")
"""What the models of a soup have in common: theta_0, what is trained, and what is held out from all of them."""


@dataclass(frozen=True)
class SoupMerge(StageJob):
    """The soup's merge: which models it merges is known only now, when the fine-tunings have ended."""

    def __call__(self) -> None:
        """Make the run of the finished models and merge it, in this process."""
        try:
            prepare_soup(read_sweep(self.run.path.parent))
        except (UserError, RunError) as error:
            kind = type(error).__name__
            append_event(self.run.events_file, stage=self.stage, event="failed", kind=kind, error=str(error))
            raise
        super().__call__()


def why_no_soup(configs: Sequence[RunConfig]) -> str | None:
    """Why the runs' models cannot be averaged, if they cannot."""
    first, *others = (identity(config) for config in configs)
    common = (*COMMON, "seed") if is_random(configs[0].model) else COMMON
    for key, value in first.items():
        if key.startswith(common) and any(other.get(key) != value for other in others):
            reason = "they do not start from the same weights" if key.startswith(("model", "seed", "data.")) else ""
            if key in ("data.train", "data.id_val_fraction"):
                reason = "what is held out from one, another was trained on"
            return f"runs of different {key} have no soup: {reason or 'they train other tensors'}."
    if configs[0].finetune.recipe == "contrastive":
        return "runs of finetune.recipe=contrastive have no soup: they train no head."
    if len(distinct(configs)) == 1:
        return "the runs differ in how they are merged or evaluated alone: they have one fine-tuned model."
    return None


def is_random(model: ModelConfig) -> bool:
    """Whether theta_0 is drawn from the seed."""
    is_with_weights = Path(model.architecture).is_dir() or model.architecture.startswith("hf-hub:")
    return model.pretrained is None and not is_with_weights


def distinct(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """One run of each fine-tuned model: those that are only merged or evaluated differently share theirs."""
    found: dict[str, RunConfig] = {}
    for config in configs:
        trained = {key: value for key, value in identity(config).items() if not key.startswith("merge.")}
        found.setdefault(str(trained), config)
    return list(found.values())


def soup_config(sweep: Sweep, configs: Sequence[RunConfig]) -> RunConfig:
    """The soup's settings: those of the first run but for the models, how they are merged, and where.

    Args:
        sweep: The sweep.
        configs: Of the runs whose models are in it.
    """
    first, *others = distinct(configs)
    kept = ("alphas", "layers", "lines", "dtype", "max_shard_size", "allow_nonfinite")
    settings = {name: getattr(first.merge, name) for name in kept}
    merge = MergeConfig(method=f"{sweep.soup}_soup", models=tuple(config.output for config in others), **settings)
    launch = first.launch
    if sweep.soup == "greedy":  # one process tries the models
        single = launch.merge.model_copy(update={"nodes": 1, "tasks_per_node": 1})
        launch = launch.model_copy(update={"merge": single})
    publish = first.publish and storage.join(storage.parent(first.publish), sweep.soup_run.path.name)
    return first.model_copy(
        update={"output": str(sweep.soup_run.path), "merge": merge, "launch": launch, "publish": publish}
    )


def prepare_soup(sweep: Sweep) -> RunConfig:
    """Make the soup's run of the models that are finished; nothing changes if it is that already.

    All ranks of a merge may do this at once: they write the same.

    Raises:
        RunError: if a model is not finished that has to be in it, or there are fewer than two.
    """
    runs = [sweep.run(member.name) for member in sweep.members]
    configs = {run: run.load_config() for run in runs if run.config_file.is_file()}

    def finished() -> list[Run]:
        if sweep.soup_of_finished:  # what cannot be evaluated is not fit for a soup either
            return [run for run, config in configs.items() if not remaining(config, run)]
        return [run for run, config in configs.items() if is_finetuned(config, run)]

    if configs and not sweep.soup_of_finished:
        seconds = next(iter(configs.values())).launch.visible_seconds
        wait_until_visible(lambda: len(finished()) == len(runs), sweep.folder, seconds)
    models = finished()
    if not sweep.soup_of_finished:
        _refuse_to_leave_out(sweep, [run for run in runs if run not in models])
    if len(distinct([configs[run] for run in models])) < 2:
        raise RunError(f"{sweep.folder}: a soup needs two fine-tuned models; finished runs: {len(models)}.")
    config = soup_config(sweep, [configs[run] for run in models])
    _write(sweep.soup_run, config, models[0])
    return config


def _refuse_to_leave_out(sweep: Sweep, left: Sequence[Run]) -> None:
    if left:
        raise RunError(
            f"{sweep.folder}: no soup, because the fine-tuning of {few([run.path.name for run in left])} has not "
            "finished. `wiseft sweep` again goes on with it; --soup-of-finished makes the soup without it."
        )


def _write(run: Run, config: RunConfig, first: Run) -> None:
    run.manifests.mkdir(parents=True, exist_ok=True)
    for source in first.manifests.glob("*.json"):
        _replace(run.manifests / source.name, source.read_text())
    for folder in ("zero_shot", "finetune"):
        _link(run.path / folder, Path("..") / first.path.name / folder)
    _replace(run.config_file, dump_config(config))


def _replace(file: Path, text: str) -> None:
    if not file.is_file() or file.read_text() != text:
        write_atomically(file, text)


def _link(link: Path, target: Path) -> None:
    """Point to a folder, at once; relative, so that the sweep may be moved."""
    if link.is_symlink() and link.readlink() == target:
        return
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} was trained here: a soup's is a link. Move {link.parent} away and start again.")
    aside = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    aside.symlink_to(target)
    aside.replace(link)
