"""Copies of a run's ensembles and of its report in a store, as the setting ``publish`` asks for.

What was published is written down in the run, so that planning need not ask the store; publishing itself always does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wiseft_dist import storage
from wiseft_dist.commits import COMMIT_FILE, digest, write_atomically
from wiseft_dist.config import RunConfig
from wiseft_dist.errors import UserError
from wiseft_dist.run import CARD_FILE, Run
from wiseft_dist.tracking import append_event

RECORD_FILE = "published.json"


def publish_ensembles(config: RunConfig, run: Run) -> None:
    """Upload each ensemble of the configured alphas that the store does not have yet; its commit record comes last.

    Raises:
        UserError: if another model lies there.
        RunError: if the store fails for good.
    """
    if config.publish is None:
        return
    for folder in _ensembles(config, run):
        url = _target(config.publish, run, folder)
        if not holds(url, folder):
            storage.upload_folder(folder, url, last=COMMIT_FILE)
        _record(run, folder, url, last=COMMIT_FILE, stage="merge")


def publish_report(config: RunConfig, run: Run) -> None:
    """Upload the ensembles' model cards and the report; what names the cells that it was made of comes last.

    The weights are not sent again: a card is no part of what is committed.

    Raises:
        RunError: if the store fails for good.
    """
    if config.publish is None:
        return
    for folder in _ensembles(config, run):
        if (folder / CARD_FILE).is_file():
            url = storage.join(_target(config.publish, run, folder), CARD_FILE)
            storage.write_bytes(url, (folder / CARD_FILE).read_bytes())
    url, last = _target(config.publish, run, run.report), run.selection_file.name
    storage.upload_folder(run.report, url, last=last)
    _record(run, run.report, url, last=last, stage="report")


def ensembles_are_published(config: RunConfig, run: Run) -> bool:
    """Whether the run says that each ensemble was published as it is now, or need not be."""
    return _all_recorded(config, run, _ensembles(config, run), last=COMMIT_FILE)


def report_is_published(config: RunConfig, run: Run) -> bool:
    """Whether the run says that the report was published as it is now, or need not be."""
    return _all_recorded(config, run, [run.report], last=run.selection_file.name)


def holds(url: str, folder: Path) -> bool:
    """Whether a folder of a store is a whole copy of a committed local one; no, where nothing was committed.

    Raises:
        UserError: if something else was committed there.
    """
    commit_url = storage.join(url, COMMIT_FILE)
    if not storage.exists(commit_url):
        return False
    if storage.read_bytes(commit_url) != (folder / COMMIT_FILE).read_bytes():
        raise UserError(f"{commit_url}: another model is published there. Choose another `publish`, or delete it.")
    return True


def _ensembles(config: RunConfig, run: Run) -> list[Path]:
    return [run.ensemble(alpha) for alpha in config.merge.alphas]


def _target(publish: str, run: Run, folder: Path) -> str:
    """Published folders lie to each other as they do in the run."""
    return storage.join(publish, _name(run, folder))


def _name(run: Run, folder: Path) -> str:
    return folder.relative_to(run.path).as_posix()


def _all_recorded(config: RunConfig, run: Run, folders: Iterable[Path], *, last: str) -> bool:
    if config.publish is None:
        return True
    records = _records(run)
    return all(
        records.get(_name(run, folder)) == _entry(folder, _target(config.publish, run, folder), last)
        for folder in folders
    )


def _record(run: Run, folder: Path, url: str, *, last: str, stage: str) -> None:
    records, entry = _records(run), _entry(folder, url, last)
    if records.get(_name(run, folder)) != entry:
        text = json.dumps(records | {_name(run, folder): entry}, indent=1)
        write_atomically(run.path / RECORD_FILE, text)
        append_event(run.events_file, stage=stage, event="published", folder=_name(run, folder), url=url)


def _entry(folder: Path, url: str, last: str) -> dict[str, str]:
    """Where a folder was published and what it was then, by the file that describes all others."""
    return {"url": url, "digest": digest((folder / last).read_text())}


def _records(run: Run) -> dict[str, Any]:
    file = run.path / RECORD_FILE
    if not file.is_file():
        return {}
    records: dict[str, Any] = json.loads(file.read_text())
    return records
