"""Class names and prompt templates: small text files that lie beside the shards."""

from __future__ import annotations

from dataclasses import dataclass

from wiseft_dist import storage
from wiseft_dist.config import DataConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.pack import CLASSNAMES_FILE, TEMPLATES_FILE
from wiseft_dist.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """What the head's rows mean and which prompts they come from."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]


def load_vocabulary(config: DataConfig) -> Vocabulary:
    """The run's classes and templates.

    Raises:
        UserError: if a file is missing or a template has no place for the class.
    """
    classnames = read_lines(_locate(config.classnames, config.train, CLASSNAMES_FILE, "data.classnames"))
    source = _locate(config.templates, config.train, TEMPLATES_FILE, "data.templates")
    return Vocabulary(classnames, read_templates(source, f"data.templates: {source}"))


def read_templates(url: str, name: str) -> tuple[str, ...]:
    """The prompt templates in a file.

    Raises:
        UserError: by ``name``, if one has no place for the class.
    """
    templates = read_lines(url)
    wrong = [template for template in templates if "{c}" not in template]
    if wrong:
        raise UserError(f"{name}: {wrong[0]!r} has no {{c}} where the class name goes.")
    return templates


def check_labels(name: str, pattern: str, manifest: Manifest, classnames: tuple[str, ...]) -> None:
    """Hold a dataset's labels, and its own class list where it has one, against the run's classes.

    Raises:
        UserError: naming the dataset, the label or the first class that differs.
    """
    if manifest.max_label >= len(classnames):
        worst = max(manifest.shards, key=lambda shard: shard.max_label or 0)
        raise UserError(
            f"{name}: {worst.url} has label {worst.max_label}, but the class list has {len(classnames)} names "
            f"(0 to {len(classnames) - 1}). Check data.classnames."
        )
    own = _find(pattern, CLASSNAMES_FILE)
    if own is None:
        return
    theirs = read_lines(own)
    if theirs != classnames:
        length = min(len(theirs), len(classnames))
        at = next((i for i in range(length) if theirs[i] != classnames[i]), length)
        pair = [names[at] if at < len(names) else "nothing" for names in (theirs, classnames)]
        raise UserError(
            f"{name}: its class list {own} says {pair[0]!r} for label {at}, the run's says {pair[1]!r}. "
            "Give data.classnames the list that the labels were made with."
        )


def _locate(given: str | None, shards: str, name: str, key: str) -> str:
    if given is not None:
        return given
    found = _find(shards, name)
    if found is None:
        raise UserError(f"{key}: no {name} in {shards} or the folder above it. Name the file with {key}.")
    return found


def _find(shards: str, name: str) -> str | None:
    """A vocabulary file in the shards' folder or the one above."""
    shards = storage.absolute(shards)
    folder = storage.parent(shards) if shards.endswith(".tar") else shards.rstrip("/")
    candidates = (storage.join(folder, name), storage.join(storage.parent(folder), name))
    return next((candidate for candidate in candidates if storage.exists(candidate)), None)


def read_lines(url: str) -> tuple[str, ...]:
    """The lines of a file that hold something.

    Raises:
        UserError: if none does.
    """
    lines = tuple(line.strip() for line in storage.read_text(url).splitlines() if line.strip())
    if not lines:
        raise UserError(f"{url}: holds no line of text.")
    return lines
