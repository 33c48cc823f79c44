from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from wiseft_dist.data.packing.parallel import PackSettings, pack
from wiseft_dist.data.packing.plan import Layout
from wiseft_dist.data.packing.sources import Columns
from wiseft_dist.errors import UserError

FORMATS = ("jpeg", "png", "webp")
SMALL = Layout(samples_per_shard=4)


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, FORMATS[number % 3])
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(10):
        path = tmp_path / "pictures" / ("cat", "dog")[number % 2] / "deep" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return tmp_path / "pictures"


def samples(split: Path) -> list[dict]:
    urls = [str(split / f"{i}.tar") for i in range(int((split / "nshards.txt").read_text()))]
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def content(split: Path) -> dict[bytes, int]:
    return {next(s[f] for f in ("jpg", "png", "webp") if f in s): int(s["cls"]) for s in samples(split)}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_of_classes_becomes_shards_with_every_byte_unchanged(folder, tmp_path):
    (done,) = pack(PackSettings(str(folder), str(tmp_path / "out"), layout=SMALL, workers=1))
    assert (done.num_samples, done.num_classes, done.num_shards) == (10, 2, 3)
    split = tmp_path / "out" / "train"
    assert content(split) == {picture(i): i % 2 for i in range(10)}
    assert [s["__key__"] for s in samples(split)] == [f"s{i:07d}" for i in range(10)]
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\ndog"
    assert json.loads((split / "sizes.json").read_text()) == {"0.tar": 4, "1.tar": 4, "2.tar": 2}
    assert sum((split / f"{i}.tar").stat().st_size for i in range(3)) == done.num_bytes


def test_the_result_does_not_depend_on_the_number_of_workers(folder, tmp_path):
    for workers in (1, 3):
        pack(PackSettings(str(folder), str(tmp_path / f"out{workers}"), layout=SMALL, workers=workers))
    assert files(tmp_path / "out1") == files(tmp_path / "out3")


def test_only_missing_shards_are_written_again(folder, tmp_path):
    settings = PackSettings(str(folder), str(tmp_path / "out"), layout=SMALL, workers=1)
    pack(settings)
    before = files(tmp_path / "out")
    (tmp_path / "out/train/1.tar").unlink()
    (tmp_path / "out/train/.2.tar.12345678").write_bytes(b"half")
    assert pack(settings)[0].num_written == 1
    assert files(tmp_path / "out") == before


def test_another_seed_into_the_same_folder_is_refused(folder, tmp_path):
    pack(PackSettings(str(folder), str(tmp_path / "out"), workers=1))
    with pytest.raises(UserError, match="another packing \\(seed was 0, now 7\\)"):
        pack(PackSettings(str(folder), str(tmp_path / "out"), layout=Layout(seed=7), workers=1))


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b"GIF89a....", "is not a JPEG, PNG or WebP")])
def test_a_picture_that_cannot_be_packed_is_named_and_counted(folder, tmp_path, data, reason):
    (folder / "cat" / "a.jpg").write_bytes(data)
    (folder / "dog" / "b.png").write_bytes(data)
    with pytest.raises(UserError, match=rf"cat/a.jpg: {reason}.*\(2 of 12 pictures"):
        pack(PackSettings(str(folder), str(tmp_path / "out"), workers=1))
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_a_table_gives_paths_labels_and_captions(folder, tmp_path):
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.jpg"))]
    rows = [f'{name},{name[:3]},"a {name}, really"' for name in names]
    (folder / "list.csv").write_text("\n".join(["path,label,text", *rows]))
    columns = Columns(caption="text")
    pack(PackSettings(str(folder / "list.csv"), str(tmp_path / "out"), columns=columns, workers=1))
    assert content(tmp_path / "out/train") == {picture(i): i % 2 for i in range(10)}
    assert {s["txt"].decode() for s in samples(tmp_path / "out/train")} == {f"a {name}, really" for name in names}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.jpg,0\n,1\n", r"row 2: no path \(1 of 2 rows\)"),
        ("a.jpg,0\nb.jpg,\n", r"row 2: no label \(1 of 2 rows\)"),
        ("a.jpg,0\nb.jpg,1\n./a.jpg,0\n", r"row 3: a.jpg is in row 1 already"),
        ("a.jpg,0\nb.jpg,-1\n", r"row 2: label -1 is no class number"),
        ("a.jpg,0\n", r"row 1: .*a.jpg: cannot be read: No such file.*\(1 of 1"),
    ],
)
def test_a_row_that_cannot_be_packed_is_named(tmp_path, rows, message):
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    with pytest.raises(UserError, match=message):
        pack(PackSettings(str(tmp_path / "list.csv"), str(tmp_path / "out"), workers=1))


def dataset_table() -> pa.Table:
    """As `datasets` writes it: pictures are structs, class names are in the schema's metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    image = pa.array([{"bytes": picture(i), "path": None} for i in range(10)],
                     pa.struct({"bytes": pa.binary(), "path": pa.string()}))  # fmt: skip
    table = pa.table({"image": image, "label": pa.array([i % 2 for i in range(10)], pa.int64())})
    return table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})


def save_to_disk(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def test_every_split_of_a_saved_dataset_is_packed(tmp_path):
    for split in ("train", "test"):
        save_to_disk(dataset_table(), tmp_path / "saved" / split)
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    pack(PackSettings(str(tmp_path / "saved"), str(tmp_path / "out"), layout=SMALL, workers=1))
    for split in ("train", "test"):
        assert content(tmp_path / "out" / split) == {picture(i): i % 2 for i in range(10)}
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\ndog"


def test_parquet_files_of_the_hub_are_packed_and_nothing_is_left_of_their_unpacking(tmp_path):
    (tmp_path / "hub/data").mkdir(parents=True)
    pq.write_table(dataset_table(), tmp_path / "hub/data/test-00000-of-00001.parquet", row_group_size=4)
    pack(PackSettings(str(tmp_path / "hub"), str(tmp_path / "out"), layout=SMALL, workers=2))
    assert content(tmp_path / "out/test") == {picture(i): i % 2 for i in range(10)}
    assert not list((tmp_path / "out/test").glob(".pack-*"))
