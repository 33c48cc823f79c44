"""torch files with a flipped byte, a lie in their directory, or of a format that is not read."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from wiseft_dist.errors import UserError
from wiseft_dist.weights.sources import open_weights

SAVED = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(12.0, 24.0), "c": torch.arange(5)}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save(SAVED, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def what_is_read(path: Path) -> str:
    """`refused` with a sentence, or whether what is read is what was saved."""
    try:
        with open_weights(path) as weights:
            same = weights.keys() == SAVED.keys() and all(
                weights[name].dtype == SAVED[name].dtype and torch.equal(weights.tensor(name), SAVED[name])
                for name in SAVED
            )
    except UserError as error:
        assert "m.pt" in str(error)
        return "refused"
    return "the same" if same else "something else"


def test_no_flipped_bit_in_the_directory_or_the_pickle_gives_other_weights(archive: Path):
    """Whatever is still read, because a date has no meaning here, is what was saved."""
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        pickled = opened.getinfo("m/data.pkl")
        directory = opened.start_dir
    begin = pickled.header_offset
    places = [*range(begin, begin + 30 + len("m/data.pkl") + pickled.file_size), *range(directory, len(whole))]
    seen = set()
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        archive.write_bytes(damaged)
        seen.add(read := what_is_read(archive))
        assert read != "something else", f"byte {place}"
    assert seen == {"refused", "the same"}


def test_a_directory_that_swaps_two_tensors_is_refused(archive: Path):
    """Both members are whole, and of one size: only their own headers tell which is which."""
    with zipfile.ZipFile(archive) as opened:
        first, second = (opened.getinfo(f"m/data/{key}").header_offset for key in "01")
        directory = opened.start_dir
    content = bytearray(archive.read_bytes())
    for name, offset in ((b"m/data/0", second), (b"m/data/1", first)):
        at = content.index(name, directory) - 4  # the offset is the last field before the name
        content[at : at + 4] = struct.pack("<I", offset)
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"m/data/[01] is not where the archive's directory says"):
        open_weights(archive)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(archive: Path, kept: float):
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    assert what_is_read(archive) == "refused"


def test_a_compressed_pickle_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("m/data.pkl", b"\x80\x02}.")
    with pytest.raises(UserError, match=r"m/data\.pkl is compressed; torch\.save never does that"):
        open_weights(tmp_path / "m.pt")


def test_a_file_of_old_torch_is_refused_with_what_to_do(tmp_path: Path):
    torch.save(SAVED, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"format of torch before 1\.6.*weights_only=True\) and torch\.save it again"):
        open_weights(tmp_path / "m.pt")


def test_numbers_in_another_byte_order_are_refused(archive: Path, tmp_path: Path):
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for info in old.infolist():
            content = b"big" if info.filename == "m/byteorder" else old.read(info)
            new.writestr(info.filename, content)
    with pytest.raises(UserError, match=r"big\.pt: was not saved in little-endian order"):
        open_weights(tmp_path / "big.pt")
