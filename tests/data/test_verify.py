from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from wiseft_dist.data.contents import Kind, Problem, read_contents
from wiseft_dist.data.manifest import index_shards
from wiseft_dist.data.tar import CAPTION_FIELDS, LABEL_FIELDS
from wiseft_dist.data.verify import Verification, _verify_shard, verify_shards
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.storage import stat


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 16), "red").save(stream, "png")
    return stream.getvalue()


PICTURE = picture()


def verified(path: Path, num_classes: int | None = None) -> tuple[Problem, ...]:
    """One shard's problems, found in this process."""
    return _verify_shard(stat(str(path)), target=LABEL_FIELDS, num_classes=num_classes).problems


def kinds(problems: tuple[Problem, ...]) -> list[tuple[Kind, str | None]]:
    return [(problem.kind, problem.key) for problem in problems]


def verify(path: Path, **settings) -> Verification:
    return verify_shards(str(path), **{"target": LABEL_FIELDS, "num_workers": 2} | settings)


def test_clean_shards_are_clean_and_counted(make_shards):
    folder = make_shards(23)
    verification = verify(folder, num_classes=3)
    num_bytes = sum(shard.stat().st_size for shard in folder.glob("*.tar"))
    assert verification == Verification(5, 23, num_bytes, ())


def test_a_shard_cut_at_any_block_is_damaged(write_tar):
    path = write_tar("0.tar", [(f"{key}.{field}", PICTURE if field == "png" else b"1") for key in "abc"
                               for field in ("png", "cls")])  # fmt: skip
    content = path.read_bytes()
    num_blocks = -(-len(content.rstrip(b"\0")) // 512)
    assert num_blocks > 10
    for length in sorted({*range(0, 512 * num_blocks + 1, 512), *range(100, 512 * num_blocks, 512)}):
        path.write_bytes(content[:length])
        problems = verified(path)
        assert [problem.kind for problem in problems] == [Kind.DAMAGED_TAR], (length, problems)
        assert str(problems[0]).startswith(f"{path}: not a readable tar file")
    path.write_bytes(content)
    assert verified(path) == ()


def test_what_a_cut_shard_holds_before_the_cut_is_still_checked(write_tar):
    path = write_tar("0.tar", [("a.png", b"nothing"), ("a.cls", b"1"), ("b.png", PICTURE), ("b.cls", b"1")])
    path.write_bytes(path.read_bytes()[:2500])
    assert set(kinds(verified(path))) == {(Kind.UNDECODABLE_IMAGE, "a"), (Kind.DAMAGED_TAR, None)}


@pytest.mark.parametrize("image", [b"", b"nothing", PICTURE[:60], b"\xff\xd8\xff\xe0" + bytes(200)])
def test_a_bad_image_is_named_and_the_rest_is_read(write_tar, image):
    files = [
        ("a.png", PICTURE),
        ("a.cls", b"0"),
        ("b.png", image),
        ("b.cls", b"1"),
        ("c.png", PICTURE),
        ("c.cls", b"x"),
    ]
    problems = verified(write_tar("0.tar", files))
    assert kinds(problems) == [(Kind.UNDECODABLE_IMAGE, "b"), (Kind.BAD_LABEL, "c")]
    assert "image b.png does not decode" in str(problems[0])


def test_labels_out_of_range_are_named(write_tar):
    files = [(f"{n}.{field}", PICTURE if field == "png" else str(n).encode()) for n in range(5)
             for field in ("png", "cls")]  # fmt: skip
    path = write_tar("0.tar", files)
    assert kinds(verified(path, num_classes=3)) == [(Kind.BAD_LABEL, "3"), (Kind.BAD_LABEL, "4")]
    assert "label 3.cls is 3, not below 3" in str(verified(path, num_classes=3)[0])
    assert verified(path) == ()


def test_missing_images_and_labels_are_named(write_tar):
    path = write_tar("0.tar", [("a.png", PICTURE), ("b.cls", b"1"), ("c.txt", b"x")])
    assert kinds(verified(path)) == [
        (Kind.MISSING_TARGET, "a"), (Kind.MISSING_IMAGE, "b"), (Kind.MISSING_IMAGE, "c"), (Kind.MISSING_TARGET, "c"),
    ]  # fmt: skip


@pytest.mark.parametrize("again", [["a.png", "b.png"], ["b.png", "b.cls", "a.png", "a.cls"]])
def test_a_key_twice_in_a_shard_is_named_once(write_tar, again):
    names = ["a.png", "a.cls", *again, "b.cls"] if again[0] == "a.png" else ["a.png", "a.cls", *again]
    path = write_tar("0.tar", [(name, PICTURE if name.endswith("png") else b"1") for name in names])
    assert kinds(verified(path)) == [(Kind.DUPLICATE_KEY, "a")]


def test_verifying_goes_on_after_a_damaged_shard_and_names_keys_across_shards(make_shards):
    folder = make_shards(23)
    (folder / "1.tar").write_bytes(b"<html>not found</html>" * 100)
    (folder / "9.tar").write_bytes((folder / "4.tar").read_bytes())
    (folder / "2.tar").write_bytes(b"")
    verification = verify(folder, num_classes=2)
    assert [Path(p.shard).name for p in verification.problems if p.kind is Kind.DAMAGED_TAR] == ["1.tar", "2.tar"]
    labels = [p.key for p in verification.problems if p.kind is Kind.BAD_LABEL]
    assert labels == ["s0000002", "s0000017", "s0000020", "s0000020"]
    twice = [p for p in verification.problems if p.kind is Kind.DUPLICATE_KEY]
    assert [p.key for p in twice] == ["s0000020", "s0000021", "s0000022"]
    assert str(twice[0]) == f"{folder}/9.tar: sample 's0000020' is also in {folder}/4.tar."
    assert verification.num_samples == 5 + 5 + 3 + 3


def test_a_shard_that_changed_or_vanished_since_it_was_listed_is_one_problem(make_shards):
    path = make_shards(5) / "0.tar"
    stored = stat(str(path))
    path.unlink()
    (problem,) = _verify_shard(stored, target=LABEL_FIELDS, num_classes=None).problems
    assert problem.kind is Kind.UNREADABLE
    assert str(problem).count(str(path)) == 1


def test_captions_can_be_the_target(write_tar):
    path = write_tar("0.tar", [("a.png", PICTURE), ("a.txt", b"a picture")])
    assert verify(path, target=CAPTION_FIELDS).problems == ()
    assert [p.kind for p in verify(path).problems] == [Kind.MISSING_TARGET]


def test_nothing_to_verify_is_refused(tmp_path):
    with pytest.raises(UserError, match="no shard"):
        verify(tmp_path)


def test_a_process_that_dies_ends_the_verification_with_its_reason(make_shards, monkeypatch):
    monkeypatch.setattr("wiseft_dist.data.verify._verify_shard", _die)
    with pytest.raises(RunError, match=r"killed after 0 of 5 shards.*fewer --workers"):
        verify(make_shards(23))


def _die(stored: object, **settings: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.pictures
def test_real_pictures_are_clean():
    if "WISEFT_TEST_DATA" not in os.environ:
        pytest.skip("WISEFT_TEST_DATA is not set")
    folder = Path(os.environ["WISEFT_TEST_DATA"], "data", "pacs", "photo", "test")
    assert verify(folder, num_classes=7).problems == ()


def test_images_are_not_read_where_nobody_looks_at_them(write_tar):
    path = write_tar("0.tar", [("a.png", b"nothing"), ("a.cls", b"1")])
    problems: list[Problem] = []
    contents = read_contents(stat(str(path)), target=LABEL_FIELDS, report=problems.append)
    assert (contents.keys, problems) == (("a",), [])


def test_a_key_that_is_no_utf8_is_named_when_it_is_indexed_and_when_it_is_verified(write_tar):
    files = [("k\udcff0.png", PICTURE), ("k\udcff0.cls", b"x\x1b"), ("k1.png", PICTURE), ("k1.cls", b"1")]
    path = write_tar("0.tar", files)
    with pytest.raises(UserError, match=r"0.tar: the key 'k.udcff0' is no UTF-8 text") as error:
        index_shards(str(path), target=LABEL_FIELDS)
    bad_key, bad_label = verified(path)
    assert (bad_key.kind, bad_key.key, bad_label.kind) == (Kind.BAD_KEY, "k\udcff0", Kind.BAD_LABEL)
    assert all(str(each).isprintable() for each in (error.value, bad_key, bad_label))
