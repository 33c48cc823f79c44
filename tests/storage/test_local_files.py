from __future__ import annotations

import pytest

from wiseft_dist import storage
from wiseft_dist.errors import UserError


def test_what_is_written_is_read_back(tmp_path):
    for url in (f"{tmp_path}/new/a", f"file://{tmp_path}/new/b"):
        storage.write_text(url, "ä")
        assert storage.read_bytes(url) == b"\xc3\xa4"
        assert storage.read_text(url) == "ä"
        assert storage.exists(url)
        assert storage.stat(url).num_bytes == 2
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "b"]


def test_a_missing_file_is_refused_by_its_path(tmp_path):
    assert storage.stat(f"{tmp_path}/a") is None
    assert not storage.exists(f"{tmp_path}/a")
    with pytest.raises(UserError, match=rf"{tmp_path}/a: cannot be read: No such file"):
        storage.read_bytes(f"{tmp_path}/a")


def test_a_file_of_another_length_than_listed_is_refused(tmp_path):
    storage.write_text(f"{tmp_path}/a", "long")
    listed = storage.stat(f"{tmp_path}/a")
    storage.write_text(f"{tmp_path}/a", "longer")
    with (
        pytest.raises(UserError, match=f"{tmp_path}/a: has 6 bytes and had 4 when it was listed"),
        storage.open_bytes(f"{tmp_path}/a", expected=listed),
    ):
        pass


def test_reading_may_begin_in_the_middle(tmp_path):
    storage.write_text(f"{tmp_path}/a", "0123456789")
    with storage.open_bytes(f"{tmp_path}/a", start=4) as stream:
        assert (stream.tell(), stream.read(2), stream.tell()) == (4, b"45", 6)


def test_a_download_of_a_local_file_is_a_copy(tmp_path):
    storage.write_text(f"{tmp_path}/a", "content")
    storage.download(f"{tmp_path}/a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere/b: cannot be written"):
        storage.download(f"{tmp_path}/a", tmp_path / "nowhere" / "b")


def test_a_folder_goes_to_a_folder(tmp_path):
    for name in ("from/a", "from/inner/b", "from/done"):
        storage.write_text(f"{tmp_path}/{name}", name)
    storage.upload_folder(tmp_path / "from", f"{tmp_path}/to", last="done")
    assert storage.read_text(f"{tmp_path}/to/inner/b") == "from/inner/b"
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "done", "inner"]
    with pytest.raises(UserError, match="none, which is to be uploaded last, is not there"):
        storage.upload_folder(tmp_path / "from", f"{tmp_path}/to", last="none")


def test_a_web_server_takes_no_uploads():
    with pytest.raises(UserError, match="http://host/a: cannot be written: a web server takes no uploads"):
        storage.write_bytes("http://host/a", b"")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    storage.write_bytes(f"{tmp_path}/a", b"ab\xff")
    with pytest.raises(UserError, match=f"{tmp_path}/a: byte 2 is no UTF-8 text"):
        storage.read_text(f"{tmp_path}/a")
