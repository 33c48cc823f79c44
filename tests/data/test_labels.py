"""Labels and metadata of test samples, out of real shards."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
import torch
from encoded_pictures import encoded

from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.labels import EvaluationTarget, split_targets
from wiseft_dist.data.manifest import index_shards
from wiseft_dist.data.transforms import Preprocess, evaluation_transform
from wiseft_dist.errors import RunError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
TRANSFORM = evaluation_transform(Preprocess(12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
PICTURE = encoded("RGB", "png", (20, 16))
WILDS = {"region": "npy:0", "year": "npy:1"}


def npy(values, dtype=np.int64) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(values, dtype), allow_pickle=dtype is object)
    return stream.getvalue()


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a ``.npy`` file, whatever follows them."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped() -> bytes:
    """A ``.npz`` file, which numpy reads under any name."""
    stream = io.BytesIO()
    np.savez(stream, np.zeros(2))
    return stream.getvalue()


@pytest.fixture
def read(write_tar):
    """The batches of a shard whose samples have these fields beside a picture."""

    def read(samples, target, *, num_workers=0, max_bad=0, batch_size=2):
        files = []
        for number, fields in enumerate(samples):
            files.append((f"s{number:07d}.png", PICTURE))
            files += [(f"s{number:07d}.{name}", content) for name, content in fields.items()]
        path = write_tar("shards/0.tar", files)
        manifest = index_shards(str(path), target=("png",))
        stream = EvaluationStream(manifest, TRANSFORM, target=target, max_bad=max_bad)
        return list(stream.batches(batch_size, num_workers=num_workers))

    return read


def table(batches, columns=()):
    """Labels and columns by key."""
    rows = {}
    for batch in batches:
        labels, metadata = split_targets(batch.targets, columns)
        for index, key in enumerate(batch.keys):
            rows[key] = (labels[index].tolist(), {name: int(column[index]) for name, column in metadata.items()})
    return rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_wilds_metadata_are_elements_of_the_vector(read, num_workers):
    samples = [{"cls": str(number % 3).encode(), "npy": npy([number, 2000 + number, 9])} for number in range(5)]
    batches = read(samples, EvaluationTarget(3, metadata=WILDS), num_workers=num_workers)
    assert table(batches, WILDS) == {
        f"s{number:07d}": ([number % 3], {"region": number, "year": 2000 + number}) for number in range(5)
    }


def test_a_frame_may_have_up_to_three_labels(read):
    texts = [{"labels": [4, 7], "offset": -10}, {"labels": [0, 29, 3], "offset": 0}, {"labels": 5, "offset": 3.0}]
    samples = [{"json": json.dumps(text).encode()} for text in texts]
    batches = read(samples, EvaluationTarget(30, labels="json:labels", metadata={"offset": "json:offset"}))
    assert table(batches, ["offset"]) == {
        "s0000000": ([4, 7, -1], {"offset": -10}),
        "s0000001": ([0, 29, 3], {"offset": 0}),
        "s0000002": ([5, -1, -1], {"offset": 3}),
    }


def test_a_label_may_stand_in_the_vector(read):
    samples = [{"npy": npy(2)}, {"npy": npy([1, 5], np.float32)}]
    assert table(read(samples, EvaluationTarget(3, labels="npy:0"))) == {
        "s0000000": ([2, -1, -1], {}),
        "s0000001": ([1, -1, -1], {}),
    }


def test_texts_are_told_apart_and_recognised(read):
    names = ["cam1", "cam2", "cam1", "", "Käuzchen"]
    samples = [{"cls": b"0", "json": json.dumps({"location": name}).encode()} for name in names]
    found = table(read(samples, EvaluationTarget(1, metadata={"location": "json:location"})), ["location"])
    numbers = [columns["location"] for _, columns in found.values()]
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 4
    assert all(0 <= number < 2**63 for number in numbers)
    assert numbers[0] == 4232926390865178559  # the same in every process and version: cells keep it


@pytest.mark.parametrize(
    ("fields", "target", "reason"),
    [
        ({"npy": npy([1])}, EvaluationTarget(3), "has none of .cls"),
        ({"cls": b"1"}, EvaluationTarget(3, metadata=WILDS), "has none of .npy"),
        ({"cls": b"1", "npy": npy([5])}, EvaluationTarget(3, metadata=WILDS), "has 1 values in its .npy, none at"),
        ({"cls": b"1", "npy": npy([5, 0.5], float)}, EvaluationTarget(3, metadata=WILDS), "has 0.5 at npy:1"),
        ({"cls": b"1", "npy": b"no array"}, EvaluationTarget(3, metadata=WILDS), "has a .npy that cannot be read"),
        ({"cls": b"1", "npy": b""}, EvaluationTarget(3, metadata=WILDS), "has a .npy that cannot be read"),
        (
            {"cls": b"1", "npy": npy([1, 2])[:-1]},
            EvaluationTarget(3, metadata=WILDS),
            "promises 16 bytes, and it has 15",
        ),
        (
            {"cls": b"1", "npy": header("<i8", (10**12,))},
            EvaluationTarget(3, metadata=WILDS),
            "promises 8,000,000,000,000",
        ),
        ({"cls": b"1", "npy": header("<i8", (-1, -2))}, EvaluationTarget(3, metadata=WILDS), "and it has 0"),
        ({"cls": b"1", "npy": header("|S0", (10**9,))}, EvaluationTarget(3, metadata=WILDS), "promises 0 bytes"),
        ({"cls": b"1", "npy": header("|O", (2,))}, EvaluationTarget(3, metadata=WILDS), "it holds pickled objects"),
        ({"cls": b"1", "npy": b"\x93NUMPY\x01\x00\x04\x00(((("}, EvaluationTarget(3, metadata=WILDS), "cannot be read"),
        ({"cls": b"1", "npy": b"\x93NUMPY\x09\x00"}, EvaluationTarget(3, metadata=WILDS), "cannot be read"),
        (
            {"cls": b"1", "npy": header("<U1", (2,)) + b"\xff" * 8},
            EvaluationTarget(3, metadata=WILDS),
            "has no value in",
        ),
        ({"cls": b"1", "npy": zipped()}, EvaluationTarget(3, metadata=WILDS), "does not begin as a .npy file does"),
        (
            {"cls": b"1", "json": b"[" * 100_000},
            EvaluationTarget(3, metadata={"a": "json:a"}),
            "has a .json that cannot",
        ),
        ({"cls": b"1", "json": b"\xff{"}, EvaluationTarget(3, metadata={"a": "json:a"}), "has a .json that cannot"),
        ({"cls": b"1", "json": b'{"a": 1e999}'}, EvaluationTarget(3, metadata={"a": "json:a"}), "has inf at json:a"),
        ({"cls": b"1", "json": b"[1"}, EvaluationTarget(3, metadata={"a": "json:a"}), "has a .json that cannot"),
        ({"cls": b"1", "json": b"[1]"}, EvaluationTarget(3, metadata={"a": "json:a"}), "has no 'a' in its .json"),
        ({"cls": b"1", "json": b'{"a": null}'}, EvaluationTarget(3, metadata={"a": "json:a"}), "has no 'a'"),
        ({"cls": b"1", "json": b'{"a": [1]}'}, EvaluationTarget(3, metadata={"a": "json:a"}), "neither a whole"),
        ({"json": b'{"labels": []}'}, EvaluationTarget(3, labels="json:labels"), "not one to 3 class numbers"),
        ({"json": b'{"labels": [0, "1"]}'}, EvaluationTarget(3, labels="json:labels"), "not one to 3 class numbers"),
        ({"json": b'{"labels": [0, 1, 2, 0, 3]}'}, EvaluationTarget(9, labels="json:labels"), "not one to 3 class"),
    ],
)
def test_what_cannot_be_used_is_a_bad_sample(read, fields, target, reason):
    with pytest.raises(RunError, match=r"sample 's0000000' has .*1 skipped so far, none may be") as error:
        read([fields], target)
    assert reason in str(error.value)
    (batch,) = read([fields], target, max_bad=1)
    assert (len(batch), len(batch.bad)) == (0, 1)


def test_a_vector_of_pickled_objects_is_never_loaded(read):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    data = stream.getvalue() + pickle.dumps([Trap(), 1])
    with pytest.raises(RunError, match=r"\.npy that cannot be read"):
        read([{"cls": b"1", "npy": data}], EvaluationTarget(3, metadata=WILDS))


@pytest.mark.parametrize(
    ("fields", "labels"), [({"cls": b"3"}, None), ({"json": b'{"labels": [0, -1]}'}, "json:labels")]
)
def test_a_label_outside_the_classes_is_an_error_however_many_may_be_bad(read, fields, labels):
    with pytest.raises(RunError, match=r"label (3|-1), but the dataset has 3 classes \(0 to 2\)"):
        read([fields], EvaluationTarget(3, labels=labels), max_bad=5)


@pytest.mark.parametrize("place", ["cls", "npy", "npy:", "npy:x", "npy:-1", "json", "json:", "txt:a"])
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(UserError, match="is no place in a sample: write npy:INDEX or json:KEY"):
        EvaluationTarget(3, metadata={"a": place})
    with pytest.raises(UserError, match="is no place in a sample"):
        EvaluationTarget(3, labels=place)


def test_plain_labels_are_one_a_sample():
    labels, metadata = split_targets(torch.tensor([4, 0]), [])
    assert labels.tolist() == [[4], [0]]
    assert metadata == {}


def test_a_text_with_half_a_character_is_a_text(read):
    samples = [{"cls": b"0", "json": text} for text in (b'{"a": "\\ud800"}', b'{"a": "\\ud801"}')]
    found = table(read(samples, EvaluationTarget(1, metadata={"a": "json:a"})), ["a"])
    assert found["s0000000"] != found["s0000001"]


def test_what_an_error_repeats_of_a_sample_is_short(read):
    samples = [{"json": json.dumps({"labels": ["\x1b" * 5000]}).encode()}]
    (batch,) = read(samples, EvaluationTarget(1, labels="json:labels"), max_bad=1)
    (bad,) = batch.bad
    assert len(bad.reason) < 500 and bad.reason.isprintable()
