from __future__ import annotations

import io
import tarfile

import pytest

from wiseft_dist.data.tar import Member, TarError, members, split_name

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ["a/b.jpg", "d" * 90 + "/" + "e" * 60 + ".png", "empty.cls", "ein/hübsches.txt"]


def archive(fmt: str, *, long_name: bool = True) -> bytes:
    """Files, a folder and a link, with what each format needs extensions for."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=FORMATS[fmt]) as tar:
        for number, name in enumerate(NAMES + ["x" * 300 + ".jpg"] * (long_name and fmt != "ustar")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = (0 if name == "empty.cls" else 700 + number), 1.5
            tar.addfile(info, io.BytesIO(bytes([65 + number]) * info.size))
        for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "link")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a/b.jpg" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info)
        last = tarfile.TarInfo("last.cls")
        last.size = 1
        tar.addfile(last, io.BytesIO(b"7"))
    return stream.getvalue()


@pytest.mark.parametrize("fmt", FORMATS)
def test_members_are_those_that_the_standard_library_finds(fmt):
    content = archive(fmt)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [Member(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isfile()]
    assert list(members(io.BytesIO(content))) == expected


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_stream_stands_at_the_content_whether_the_one_before_was_read_or_not(fmt):
    content = archive(fmt)
    for every in (1, 2, 3):
        stream = io.BytesIO(content)
        for number, member in enumerate(members(stream)):
            if number % every == 0:
                assert stream.read(member.size) == content[member.offset : member.offset + member.size]


@pytest.mark.parametrize("fmt", FORMATS)
def test_reading_can_begin_at_any_members_header(fmt):
    content = archive(fmt)
    whole = list(members(io.BytesIO(content)))
    for number, member in enumerate(whole):
        stream = io.BytesIO(content)
        stream.seek(member.header)
        assert list(members(stream, member.header)) == whole[number:]


def test_sizes_above_eight_gigabytes_are_read_in_both_notations():
    for fmt in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("large.jpg")
        info.size = 9 * 2**30
        assert next(members(io.BytesIO(info.tobuf(fmt)))).size == 9 * 2**30


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_archive_that_is_cut_anywhere_before_its_end_block_is_an_error(fmt):
    content = archive(fmt)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.getmembers()
        end = tar.offset
    for cut in [*range(0, end + 512, 256), end + 511]:
        stream = io.BytesIO(content[:cut])
        with pytest.raises(TarError):
            for member in members(stream):
                if len(stream.read(member.size)) != member.size:
                    raise TarError("short content: the reader of samples checks it")
    assert list(members(io.BytesIO(content[: end + 512])))


def test_a_flipped_byte_of_a_header_is_noticed_or_changes_nothing():
    content = archive("ustar")
    member = next(members(io.BytesIO(content)))
    for at in range(512):
        damaged = bytearray(content)
        damaged[at] ^= 0x15
        if at == 155:  # what pads the checksum
            assert next(members(io.BytesIO(damaged))) == member
            continue
        with pytest.raises(TarError, match="byte 0"):
            next(members(io.BytesIO(damaged)))


def test_what_is_no_tar_at_all_is_an_error():
    for content in (b"", b"\x89PNG" * 1000, b"<html>" * 200):
        with pytest.raises(TarError):
            list(members(io.BytesIO(content)))


def test_a_damaged_extended_header_is_an_error_and_not_a_loop():
    content = bytearray(archive("pax"))
    at = content.index(b" path=") - 2
    content[at : at + 2] = b"00"
    with pytest.raises(TarError):
        list(members(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s0000012.jpg", ("s0000012", "jpg")),
        ("a.b/c.seg.PNG", ("a.b/c", "seg.png")),
        ("README", (None, "")),
        (".DS_Store", (None, "ds_store")),
    ],
)
def test_names_split_at_the_first_dot_of_the_file_name(name, expected):
    assert split_name(name) == expected
