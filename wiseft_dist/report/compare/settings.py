"""What the configurations of runs differ in, as a page may show it to anybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wiseft_dist.report.compare.given import Compared
from wiseft_dist.report.page.section import Section, row
from wiseft_dist.report.sections.provenance import settings_of
from wiseft_dist.report.wording import NOTHING
from wiseft_dist.run import identity
from wiseft_dist.tracking.scrubbing import scrubbed

OWN = ("output", "publish", "wandb.", "report.")
"""Settings that say where a run lies and how it is shown: they differ without making another run."""
LONGEST = 200
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Setting:
    """A setting that not all runs have alike."""

    key: str
    """Dotted."""
    values: tuple[str, ...]
    """One a run; ``–`` where it is not set, or not known."""
    decides_weights: bool


def differing_settings(runs: Sequence[Compared]) -> tuple[Setting, ...]:
    """Those that decide the weights come first; of runs without a configuration nothing is known."""
    configs = [run.config for run in runs]
    known = [config for config in configs if config is not None]
    trees = [{} if config is None else dict(settings_of(config.model_dump(mode="json"))) for config in configs]
    deciding = {key for config in known for key in identity(config)}
    found = [
        Setting(key, tuple(_text(tree.get(key, NOTHING)) for tree in trees), key in deciding)
        for key in dict.fromkeys(key for tree in trees for key in tree)
        if not key.startswith(OWN) and len({tree.get(key, NOTHING) for tree in trees if tree}) > 1
    ]
    return tuple(sorted(found, key=lambda setting: not setting.decides_weights))


def settings_section(runs: Sequence[Compared]) -> Section:
    """The table of them."""
    found = differing_settings(runs)
    without = [run.name for run in runs if run.config is None]
    if len(without) == len(runs):
        return Section("Settings that differ", sentences=("No configuration is known: only reports are there.",))
    sentences = [f"The configuration of {', '.join(without)} is not known: only a report is there."] if without else []
    if not found:
        sentences.append("The runs that have a configuration have the same settings.")
    rows = tuple(row(each.key, *each.values, "yes" if each.decides_weights else "no") for each in found)
    return Section(
        "Settings that differ",
        ("setting", *(run.name for run in runs), "decides the weights"),
        rows,
        sentences=tuple(sentences),
        note="Home directories, user and host names and secrets are taken out. Where a run lies, is published and is "
        "tracked is not compared."
        if rows
        else "",
    )


def _text(value: str) -> str:
    text = scrubbed(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
