"""The page's pictures: samples of which zero-shot, ensemble and fine-tuned say different things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wiseft_dist.config import RunConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.stage import ID_VAL, load_manifest
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.statistics.selection import FIXED_ALPHA
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.printable import printable
from wiseft_dist.progress import progress_bar
from wiseft_dist.report.changed import COLUMNS, Changed, Said, changed_most
from wiseft_dist.report.page.section import Picture, Section
from wiseft_dist.report.thumbnails import Place, Thumbnails, thumbnails
from wiseft_dist.report.wording import class_name, ends_and_chosen, shown_datasets
from wiseft_dist.run import Run
from wiseft_dist.tracking.scrubbing import scrubbed


def picture_sections(
    config: RunConfig, run: Run, statistics: Statistics, classnames: Mapping[str, Sequence[str]]
) -> tuple[list[Section], list[str]]:
    """A section for each dataset with pictures, and a sentence for each of which some could not be read.

    Args:
        config: The run; ``report.pictures`` says how many a dataset.
        run: Its directory.
        statistics: Of the run.
        classnames: By dataset, where they are known.

    Raises:
        RunError: if a cell is damaged; never because of a shard.
    """
    alphas = _models(statistics)
    if not config.report.pictures or len(alphas) < 2:
        return [], []
    found = _chosen(config, run, statistics, alphas)
    wanted = [each.place for picks in found.values() for each in picks]
    with progress_bar("reading pictures", total=len(wanted), unit="pictures") as bar:
        read = thumbnails(wanted, on_progress=bar.advance)
    sections, problems = [], []
    for name, picks in found.items():
        title = statistics.datasets[name].title
        problems += _problems(title, picks, read)
        if any(each.place in read.images for each in picks):
            sections.append(_section(title, picks, read, classnames.get(name, ()), _judged(alphas)))
    return sections, problems


@dataclass(frozen=True)
class _Pick:
    sample: Changed
    place: Place


def _chosen(config: RunConfig, run: Run, statistics: Statistics, alphas: Mapping[str, float]) -> dict[str, list[_Pick]]:
    """By dataset; one dataset's predictions are in memory at a time."""
    store = CellStore.of_run(config, run)
    members = [Member(alpha) for alpha in alphas.values()]
    models = {name: index for index, name in enumerate(alphas)}
    found = {}
    for name in shown_datasets(statistics):
        predictions = store.read(name, members, COLUMNS)
        samples = changed_most(predictions, models, _judged(alphas), config.report.pictures)
        manifest = load_manifest(run, name)
        found[name] = [_Pick(sample, _place(manifest, sample, name == ID_VAL)) for sample in samples]
    return found


def _models(statistics: Statistics) -> dict[str, float]:
    """Both ends and an ensemble between them: the chosen one, or that of the fixed alpha where an end was chosen."""
    named = ends_and_chosen(statistics)
    if FIXED_ALPHA in statistics.alphas and not any(0 < alpha < 1 for alpha in named.values()):
        named["ensemble"] = FIXED_ALPHA
    in_order = sorted(named.items(), key=lambda item: item[1])
    return {f"{name} (alpha {alpha:g})" if 0 < alpha < 1 else name: alpha for name, alpha in in_order}


def _judged(alphas: Mapping[str, float]) -> str:
    """The model that gains or loses: the chosen one; fine-tuned where none, or zero-shot, was chosen."""
    return next((name for name, alpha in alphas.items() if "chosen" in name and alpha), list(alphas)[-1])


def _place(manifest: Manifest, sample: Changed, held_out: bool) -> Place:
    """Where the sample at a position of a dataset is; the held-out piece lies among the training samples."""
    counts = manifest.held_out_counts if held_out else manifest.training_counts + manifest.held_out_counts
    ends = np.cumsum(counts)
    shard = int(np.searchsorted(ends, sample.position, side="right"))
    index = sample.position - int(ends[shard] - counts[shard])
    return Place(manifest.shards[shard], int(manifest.held_out(shard)[index]) if held_out else index, sample.key)


def _problems(title: str, picks: Sequence[_Pick], read: Thumbnails) -> list[str]:
    missing = [each.place for each in picks if each.place not in read.images]
    if not missing:
        return []
    reason = printable(scrubbed(read.problems[missing[0]]))
    return [f"{title}: {len(missing)} of {len(picks)} pictures are not shown: {reason}"]


def _section(title: str, picks: Sequence[_Pick], read: Thumbnails, classnames: Sequence[str], judged: str) -> Section:
    shown = [each for each in picks if each.place in read.images]
    size = sum(each.place.num_bytes for each in shown) / 1e6
    return Section(
        f"{title}: pictures whose prediction changed most",
        note=f"Gained: right by {judged} and wrong by another of these models; lost: the other way round. First come "
        "those whose right class's probability differs most. Percentages are probabilities. To read them took up to "
        f"{size:,.1f} MB of the shards.",
        pictures=tuple(_picture(each.sample, read.images[each.place], classnames) for each in shown),
    )


def _picture(sample: Changed, image: bytes, classnames: Sequence[str]) -> Picture:
    label = " or ".join(class_name(classnames, each) for each in sample.labels)
    lines = (_said(each, classnames) for each in sample.said)
    kind = "gained" if sample.is_gained else "lost"
    return Picture(image, f"{sample.key}, labelled {label}", (f"{kind}: {label}", sample.key, *lines))


def _said(said: Said, classnames: Sequence[str]) -> str:
    """``zero-shot: fox 61.0 %``; of a wrong class also what the right one got."""
    right = "" if said.is_right else f", right class {_percent(said.right)}"
    return f"{said.model}: {class_name(classnames, said.label)} {_percent(said.confidence)}{right}"


def _percent(fraction: float) -> str:
    """``61.0 %``, never broken at the end of a line."""
    return f"{100 * fraction:.1f}\u00a0%"
