"""Reading tar archives member by member, and what their members' names mean.

Python's ``tarfile`` spends more time on a small picture's header than libjpeg on the picture. Shards need little of it:
regular files in the POSIX ustar, pax and GNU formats. Source: POSIX.1-2017, ``pax``, "ustar Interchange Format".

A tar archive ends with a block of zeros. One that ends without it was cut, whatever its last member looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
LABEL_FIELDS = ("cls",)
CAPTION_FIELDS = ("txt",)

BLOCK = 512
METADATA = re.compile(r"__[^/]*__($|/)")
"""Members that webdataset does not count as samples."""
_REGULAR = (b"0", b"\0", b"7")
_MAX_EXTENSION = 2**20


class TarError(ValueError):
    """A damaged header, or an archive that ends before its end."""


class Member(NamedTuple):
    """A regular file of an archive."""

    name: str
    header: int
    """First byte of its first header."""
    offset: int
    """First byte of its content."""
    size: int
    """Bytes of content."""


def members(stream: IO[bytes], start: int = 0) -> Iterator[Member]:
    """The regular files of an archive, in their order.

    When a member is yielded the stream stands at its content: read all of it, or none.

    Args:
        stream: Positioned at ``start``; seekable.
        start: Byte of the header to begin at.

    Raises:
        TarError: if a header is damaged or the archive has no end.
    """
    position = start
    first_header: int | None = None
    extended: dict[str, str] = {}
    while True:
        header = stream.read(BLOCK)
        if len(header) != BLOCK:
            raise TarError(f"the archive ends at byte {position + len(header)} without its end block")
        if not header[0] and header == bytes(BLOCK):
            return
        size = _checked_size(header, position)
        if first_header is None:
            first_header = position
        kind = header[156:157]
        if "size" in extended and kind not in (b"x", b"L"):
            size = _extended_size(extended["size"], position)
        content = position + BLOCK
        following = content + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in _REGULAR:
            name = extended.get("path") or _name(header)
            yield Member(name, first_header, content, size)
            first_header, extended = None, {}
        elif kind in (b"x", b"L"):
            extended |= _extension(stream, kind, size, position)
        elif kind != b"g":  # a folder, a link: no content that matters here; a global header belongs to what follows
            first_header, extended = None, {}
        position = following
        if stream.tell() != position:
            stream.seek(position)


def read_content(member: Member, stream: IO[bytes]) -> bytes:
    """The content of a member at which the stream stands.

    Raises:
        TarError: if the archive ends before it does.
    """
    content = stream.read(member.size)
    if len(content) != member.size:
        raise TarError(f"the archive ends inside {member.name}")
    return content


def _checked_size(header: bytes, position: int) -> int:
    """The size field of a header whose checksum is right."""
    try:
        checksum = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
        size = _size(header[124:136])
    except ValueError:
        raise TarError(f"there is no tar header at byte {position}") from None
    if checksum != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TarError(f"the tar header at byte {position} is damaged")
    return size


def _extended_size(text: str, position: int) -> int:
    if not text.isascii() or not text.isdigit():
        raise TarError(f"the extended header before byte {position} has the size {text[:20]!r}")
    return int(text)


def _size(field: bytes) -> int:
    """Octal digits, or a big-endian number where the first bit is set (GNU, sizes from 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _extension(stream: IO[bytes], kind: bytes, size: int, position: int) -> dict[str, str]:
    """What an extension header says of the next member: a pax record list (x) or a long GNU name (L)."""
    if size > _MAX_EXTENSION:
        raise TarError(f"the tar header at byte {position} announces {size} bytes of extended header")
    content = stream.read(size)
    if len(content) != size:
        raise TarError(f"the archive ends inside the extended header at byte {position}")
    if kind == b"L":
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if b" path=" not in content and b" size=" not in content:
        return {}  # most often a modification time with a fraction
    records = {}
    while content:
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length) <= len(content):
            raise TarError(f"the extended header at byte {position} is damaged")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    return records


def split_name(name: str) -> tuple[str | None, str]:
    """``dir/s0000012.jpg`` to its sample key and field, as webdataset does: at the first dot of the file name.

    Without both, as in ``README`` or ``.DS_Store``, it belongs to no sample: the key is None.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, field = file.partition(".")
    return (folder + slash + stem if stem and dot else None), field.lower()
