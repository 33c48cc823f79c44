"""Whether a stage that runs in a container sees the local files that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.pipeline import STAGES

READS = {
    "finetune": (
        "data.train",
        "data.classnames",
        "data.templates",
        "data.cache",
        "model.architecture",
        "model.pretrained",
        "finetune.features",
    ),
    "merge": ("merge.models", "merge.fisher"),
    "evaluate": ("data.train", "data.reference", "data.shifts", "data.classnames", "data.cache"),
}
"""Settings that name what a stage reads, or keeps for the next time; the rest lies in the run directory."""


def unseen_in_containers(config: RunConfig) -> list[str]:
    """A sentence for each setting that names a place which the container of its stage does not mount.

    Args:
        config: The run, with absolute paths.
    """
    return [
        f"{setting}: {place} is not mounted in the container of launch.{stage}: add its folder to "
        f"launch.{stage}.container_mounts, unless the image holds it."
        for stage in STAGES
        if getattr(config.launch, stage).container
        for setting, place in _local_places(config, READS.get(stage, ()))
        if not _is_seen(Path(place), config, getattr(config.launch, stage))
    ]


def _local_places(config: RunConfig, settings: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for setting in settings:
        section, name = setting.split(".")
        value = getattr(getattr(config, section), name)
        listed = value if isinstance(value, tuple) else (value,)
        for key, place in value.items() if isinstance(value, dict) else ((None, each) for each in listed):
            if place and place.startswith("/"):  # neither a name nor a place in a store
                yield setting if key is None else f"{setting}.{key}", place


def _is_seen(place: Path, config: RunConfig, resources: Resources) -> bool:
    inside = [mount.split(":")[1] if ":" in mount else mount for mount in resources.container_mounts]
    if resources.container_runtime == "apptainer":
        inside += [str(Path.home()), "/tmp"]  # apptainer's own default
    return any(place.is_relative_to(folder) for folder in (*inside, config.output))
