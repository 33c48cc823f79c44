"""Reading a shard once from end to end: what is in it, and everything that is wrong with it.

Indexing stops at the first problem, `wiseft shards verify` notes it and goes on: both read by the same rules here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO

from wiseft_dist import storage
from wiseft_dist.commits import digest
from wiseft_dist.data.tar import (
    IMAGE_FIELDS,
    LABEL_FIELDS,
    METADATA,
    Member,
    TarError,
    members,
    read_content,
    split_name,
)
from wiseft_dist.errors import UserError
from wiseft_dist.printable import printable

NUM_MARKS = 16
"""Places in a shard, at most, at which reading can begin."""
MAX_LABEL_BYTES = 18
"""More digits do not fit in 64 bits."""


class Kind(StrEnum):
    """What can be wrong with a shard."""

    UNREADABLE = "unreadable shard"
    DAMAGED_TAR = "damaged tar"
    UNDECODABLE_IMAGE = "undecodable image"
    MISSING_IMAGE = "missing image"
    MISSING_TARGET = "missing target"
    BAD_LABEL = "bad label"
    BAD_KEY = "bad key"
    DUPLICATE_KEY = "duplicate key"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, for a person: ``str()`` is a sentence that begins with the shard."""

    kind: Kind
    shard: str
    key: str | None
    """The sample, where it is one sample's problem."""
    text: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.text}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a shard holds."""

    keys: tuple[str, ...]
    """Of the samples, in their order."""
    max_label: int
    """Largest class label, -1 where samples have none."""
    content_digest: str
    """Hash of every member's name, size and label, in their order."""
    marks: tuple[int, ...]
    """Byte offsets at which the samples 0, k, 2k, ... begin; k is ``mark_step``."""
    mark_step: int


Report = Callable[[Problem], None]
CheckImage = Callable[[bytes], str | None]
"""Says what is wrong with the bytes of an image, or None."""


def read_contents(
    stored: storage.StoredObject,
    *,
    target: Sequence[str],
    report: Report,
    check_image: CheckImage | None = None,
    num_classes: int | None = None,
) -> Contents:
    """Read a shard to its end.

    Args:
        stored: The shard, as it was listed.
        target: The fields of which every sample must have one beside its image.
        report: Called with every problem; reading goes on if it returns.
        check_image: Called with the bytes of every image. Without it, all but headers and labels is passed over unread.
        num_classes: Report labels that are not below it.

    Raises:
        UserError: if the shard cannot be opened.
    """
    reader = _ShardReader(stored.url, tuple(target), report, check_image, num_classes)
    try:
        with storage.open_bytes(stored.url, expected=stored) as stream:
            for member in members(stream):
                reader.add(member, stream)
        cut = None
    except (TarError, OSError) as error:
        reader.problem(Kind.DAMAGED_TAR, None, f"not a readable tar file ({error}). Copy this shard again.")
        cut = reader.at_hand
    reader.check_samples(cut)
    return reader.contents()


@dataclass(slots=True)
class _SampleFiles:
    """The files of one sample, as far as they were met."""

    header: int
    """Byte at which the first of them begins."""
    fields: set[str] = field(default_factory=set)
    is_repeated: bool = False


@dataclass
class _ShardReader:
    """The samples of a shard, as far as it was read."""

    url: str
    target: tuple[str, ...]
    report: Report
    check_image: CheckImage | None
    num_classes: int | None
    samples: dict[str, _SampleFiles] = field(default_factory=dict)
    at_hand: str | None = None
    """Key of the sample at which the reader is."""
    members: list[tuple[str, int, int]] = field(default_factory=list)
    """Of every member: name, bytes, label or -1."""
    max_label: int = -1

    def problem(self, kind: Kind, key: str | None, text: str) -> None:
        self.report(Problem(kind, self.url, key, text))

    def add(self, member: Member, stream: IO[bytes]) -> None:
        """Note a file, at whose content the stream stands."""
        key, name = split_name(member.name)
        is_read = self.check_image is not None or name in LABEL_FIELDS
        content = read_content(member, stream) if is_read else b""
        if key is None or METADATA.match(member.name):
            return
        self._add_field(key, name, member.header)
        label = self._label(key, member.name, content) if name in LABEL_FIELDS else -1
        if name in IMAGE_FIELDS and self.check_image is not None:
            wrong = self.check_image(content)
            if wrong is not None:
                text = f"image {printable(member.name)} does not decode ({wrong}). Replace it or leave it out."
                self.problem(Kind.UNDECODABLE_IMAGE, key, text)
        self.max_label = max(self.max_label, label)
        self.members.append((member.name, member.size, label))

    def _add_field(self, key: str, name: str, header: int) -> None:
        """Webdataset wants the files of a sample side by side, and each only once."""
        if key not in self.samples and not _is_utf8(key):
            text = f"the key {key!r} is no UTF-8 text. Write this shard again with other names."
            self.problem(Kind.BAD_KEY, key, text)
        is_back = key in self.samples and key != self.at_hand
        self.at_hand = key
        sample = self.samples.setdefault(key, _SampleFiles(header))
        if is_back or name in sample.fields:
            fault = "the files of sample {} are not next to each other" if is_back else "sample {} has two files .{}"
            if not sample.is_repeated:
                text = f"{fault.format(repr(key), name)}. Write this shard again."
                self.problem(Kind.DUPLICATE_KEY, key, text)
            sample.is_repeated = True
        sample.fields.add(name)

    def _label(self, key: str, name: str, text: bytes) -> int:
        name = printable(name)
        if not text.strip().isdigit() or len(text) > MAX_LABEL_BYTES:
            self.problem(Kind.BAD_LABEL, key, f"label {name} holds {text[:20]!r}, not a class number.")
            return -1
        label = int(text)
        if self.num_classes is not None and label >= self.num_classes:
            self.problem(Kind.BAD_LABEL, key, f"label {name} is {label}, not below {self.num_classes}.")
        return label

    def check_samples(self, cut: str | None) -> None:
        """Every sample must be whole now, but for the one in whose midst the archive was cut."""
        needs = ((IMAGE_FIELDS, "image", Kind.MISSING_IMAGE), (self.target, "target", Kind.MISSING_TARGET))
        for key, sample in self.samples.items():
            for needed, name, kind in needs if key != cut else ():
                if sample.fields.isdisjoint(needed):
                    self.problem(kind, key, f"sample {key!r} has no {name} (.{', .'.join(needed)}).")

    def contents(self) -> Contents:
        mark_step = mark_step_of(len(self.samples))
        marks = tuple(sample.header for sample in self.samples.values())[::mark_step]
        return Contents(tuple(self.samples), self.max_label, digest(self.members), marks, mark_step)


def _is_utf8(key: str) -> bool:
    """Whether the key can be written down: bytes of a name that are no UTF-8 were read as lone surrogates."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def mark_step_of(num_samples: int) -> int:
    """Samples from one mark of a shard to the next, 1 or more."""
    return max(1, -(-num_samples // NUM_MARKS))


def refuse(problem: Problem) -> None:
    """A report that stops at the first problem.

    Raises:
        UserError: always.
    """
    raise UserError(str(problem))
