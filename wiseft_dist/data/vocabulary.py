"""Class names and prompt templates: small text files that lie beside the shards."""

from __future__ import annotations

from dataclasses import dataclass

from wiseft_dist import storage
from wiseft_dist.config import DataConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.pack import CLASSNAMES_FILE, TEMPLATES_FILE
from wiseft_dist.errors import UserError

CLASS = "{c}"
CLASS_WITH_ARTICLE = "{a c}"


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
    wrong = [template for template in templates if CLASS not in template and CLASS_WITH_ARTICLE not in template]
    if wrong:
        raise UserError(f"{name}: {wrong[0]!r} has no {{c}} where the class name goes.")
    return templates


def prompt(template: str, classname: str) -> str:
    """A template with a class name in it: ``{c}`` as it is, ``{a c}`` with its article (``an airport hangar``)."""
    plain = classname.replace("_", " ")
    article = "an" if plain[:1].lower() in tuple("aeiou") else "a"
    return template.replace(CLASS_WITH_ARTICLE, f"{article} {plain}").replace(CLASS, classname)


def check_labels(name: str, pattern: str, manifest: Manifest, classnames: tuple[str, ...]) -> None:
    """Hold the training set's labels, and its own class list where it has one, against the run's classes.

    Raises:
        UserError: naming the dataset, the label or the first class that differs.
    """
    refuse_labels_from(
        len(classnames),
        name,
        manifest,
        f"the class list has {len(classnames)} names (0 to {len(classnames) - 1}). Check data.classnames.",
    )
    own = find_vocabulary_file(pattern, CLASSNAMES_FILE)
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


def check_own_labels(name: str, pattern: str, manifest: Manifest) -> None:
    """Hold a test set's labels against its own class list, where one lies beside its shards.

    Raises:
        UserError: naming the dataset, the label and the list.
    """
    own = find_vocabulary_file(pattern, CLASSNAMES_FILE)
    if own is not None:
        num_classes = len(read_lines(own))
        reason = f"the class list has {num_classes} names (0 to {num_classes - 1}): {own}."
        refuse_labels_from(num_classes, name, manifest, reason)


def refuse_labels_from(num_classes: int, name: str, manifest: Manifest, reason: str) -> None:
    """Refuse labels that are not below a number.

    Raises:
        UserError: naming the dataset, the shard, the label and ``reason``.
    """
    if manifest.max_label >= num_classes:
        worst = max(manifest.shards, key=lambda shard: -1 if shard.max_label is None else shard.max_label)
        raise UserError(f"{name}: {worst.url} has label {worst.max_label}, but {reason}")


def _locate(given: str | None, shards: str, name: str, key: str) -> str:
    if given is not None:
        return given
    found = find_vocabulary_file(shards, name)
    if found is None:
        raise UserError(f"{key}: no {name} in {shards} or the folder above it. Name the file with {key}.")
    return found


def find_vocabulary_file(shards: str, name: str) -> str | None:
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
