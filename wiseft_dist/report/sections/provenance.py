"""The page's sections on where its numbers come from: software, machines, files by their hashes, settings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from wiseft_dist.commits import digest, is_committed, read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import TRAIN, datasets_to_evaluate, load_manifest
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.store import CellStore, members_of, report_digest
from wiseft_dist.report.history import Attempt, History
from wiseft_dist.report.page.section import Cell, Row, Section
from wiseft_dist.report.sections.numbers import count_cell
from wiseft_dist.report.sections.selection import exact_duration
from wiseft_dist.report.wording import NOTHING
from wiseft_dist.run import Run
from wiseft_dist.tracking.scrubbing import scrubbed, scrubbed_tree
from wiseft_dist.weights.finetuned import describe_models

MAX_ATTEMPTS = 60
"""Of a run that was started more often, the last ones are shown."""


def provenance_sections(config: RunConfig, run: Run, history: History) -> Iterator[Section]:
    """Those that have something to show; folded, as they are looked into seldom."""
    yield from _software(history)
    yield from _attempts(history)
    yield _hashes(config, run)
    yield Section(
        "Settings",
        ("setting", "value"),
        tuple(Row(name, (Cell(value),)) for name, value in settings_of(scrubbed_tree(config.model_dump(mode="json")))),
        note="The resolved configuration, as in config.yaml; without home directories and secrets.",
        is_folded=True,
    )


def _software(history: History) -> Iterator[Section]:
    """Versions of every attempt; where attempts differ, each version with the stages that had it."""
    told: dict[str, dict[str, dict[str, None]]] = {}
    for attempt in history.attempts:
        for name, version in _versions(attempt.event).items():
            told.setdefault(name, {}).setdefault(version, {}).setdefault(attempt.stage)
    rows = [Row(name, (Cell(_told(versions)),)) for name, versions in told.items()]
    rows += [Row("code", (Cell(_code(event)),)) for event in history.codes]
    if rows:
        note = "Each stage tells what it runs on when it starts. A code is named by the hash of the package's files."
        yield Section("Software", ("what", "version"), tuple(rows), note=note, is_folded=True)


def _versions(event: Mapping[str, Any]) -> dict[str, str]:
    libraries = event.get("libraries")
    found = {"wiseft_dist": event.get("version"), "Python": event.get("python")}
    found |= libraries if isinstance(libraries, dict) else {}
    return {str(name): str(version) for name, version in found.items() if version}


def _told(versions: Mapping[str, Mapping[str, None]]) -> str:
    if len(versions) == 1:
        return next(iter(versions))
    return "; ".join(f"{version} ({', '.join(stages)})" for version, stages in versions.items())


def _code(event: Mapping[str, Any]) -> str:
    revision = event.get("revision")
    changes = " with changes" if event.get("is_dirty") else ""
    return f"{event['code']}" + (f", revision {str(revision)[:12]}{changes}" if revision else "")


def _attempts(history: History) -> Iterator[Section]:
    attempts = history.attempts[-MAX_ATTEMPTS:]
    if not attempts:
        return
    note = "Times in UTC; an attempt lasts until its stage was heard of last."
    if len(attempts) < len(history.attempts):
        note += f" The last {len(attempts)} of {len(history.attempts):,} attempts."
    columns = ("stage", "began", "lasted", "host", "processes", "GPUs", "started by", "requeues")
    yield Section("Attempts", columns, tuple(map(_attempt, attempts)), note=note, is_folded=True)


def _attempt(attempt: Attempt) -> Row:
    event = attempt.event
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(attempt.began))
    job_id = event.get("job_id")
    by = str(event.get("launcher", "")) + (f", job {job_id}" if job_id else "")
    cells = (
        Cell(began, value=attempt.began),
        Cell(exact_duration(attempt.ended - attempt.began), value=attempt.ended - attempt.began),
        Cell(str(event.get("host", NOTHING))),
        count_cell(attempt.world_size),
        Cell(_gpus(event.get("gpus"))),
        Cell(by),
        count_cell(attempt.num_requeues),
    )
    return Row(f"{attempt.stage}/{attempt.job}" if attempt.job else attempt.stage, cells)


def _gpus(names: object) -> str:
    """Of a host: ``8 x NVIDIA H100``."""
    if not isinstance(names, list) or not names:
        return NOTHING
    told = list(map(str, names))
    return ", ".join(f"{told.count(name)} x {name}" for name in dict.fromkeys(told))


def _hashes(config: RunConfig, run: Run) -> Section:
    rows = [*_models(config, run), *_ensembles(config, run), *_data(config, run)]
    return Section(
        "Files and their hashes",
        ("what", "hash", "of what"),
        tuple(rows),
        note="A hash of 16 digits is the beginning of a SHA-256. Runs whose cells have the same hash have scored the "
        "same weights on the same samples with the same settings.",
        is_folded=True,
    )


def _models(config: RunConfig, run: Run) -> Iterator[Row]:
    try:
        described = describe_models(config, run)
    except (RunError, UserError, OSError, ValueError) as error:
        yield _hash("models", NOTHING, str(error))
        return
    for role, models in described.items():
        for model in models:
            yield _hash(role, str(model.get("digest", NOTHING)), _place(run, str(model.get("path", ""))))


def _ensembles(config: RunConfig, run: Run) -> Iterator[Row]:
    for alpha in config.merge.alphas:
        folder = run.ensemble(alpha)
        if is_committed(folder):
            files = read_commit(folder)["files"]
            num_bytes = sum(entry["bytes"] for entry in files.values())
            yield _hash(f"ensemble, alpha {alpha:g}", digest(files), f"{num_bytes:,} bytes in {len(files)} files")


def _data(config: RunConfig, run: Run) -> Iterator[Row]:
    for name in (TRAIN, *config.data.evaluated):
        manifest = load_manifest(run, name)
        told = f"{manifest.num_samples:,} samples in {len(manifest.shards):,} shards of {manifest.source}"
        yield _hash(f"manifest of {name}", manifest.content_digest, told)
    store, names, members = CellStore.of_run(config, run), datasets_to_evaluate(config, run), members_of(config)
    for name in names:
        keys = [store.folder(name, member).name for member in members]
        yield _hash(f"cells of {name}", digest(keys), f"{len(members)} members")
    yield _hash("all cells", report_digest(config, store, names), "with the roles and descriptions of the datasets")


def _hash(name: str, value: str, of_what: str) -> Row:
    return Row(name, (Cell(value), Cell(scrubbed(of_what))))


def _place(run: Run, path: str) -> str:
    """Inside the run, from there."""
    return path.removeprefix(f"{run.path}/")


def settings_of(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf with its dotted name; lists of plain values are leaves."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from settings_of(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list):
        yield name, ", ".join(map(_plain, tree)) if tree else NOTHING
    else:
        yield name, NOTHING if tree in (None, {}) else _plain(tree)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
