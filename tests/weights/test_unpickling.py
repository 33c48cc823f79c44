"""What a pickle may name, and that nothing it does with that points a tensor at another file."""

import argparse
import collections
import datetime
import pathlib
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wiseft_dist.errors import UserError
from wiseft_dist.storage.objects import StoredObject
from wiseft_dist.weights.records import Extent, TensorRecord, Weights
from wiseft_dist.weights.sources import open_weights

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PARAMETER = b"ctorch._utils\n_rebuild_parameter\n"
FROM_TYPE = b"ctorch._tensor\n_rebuild_from_type_v2\n"
WRAPPED = b"ctorch.jit._pickle\nrestore_type_tag\n"
ORDERED = b"ccollections\nOrderedDict\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def with_attributes(target: bytes, **attributes: bytes) -> bytes:
    """Pickle code that sets attributes of an object (BUILD)."""
    return target + b"}(" + b"".join(text(name) + value for name, value in attributes.items()) + b"ub"


def remote(url: str) -> bytes:
    """Pickle code for a function with the attributes of a remote object."""
    return with_attributes(
        PARAMETER, url=text(url), num_bytes=number(1000), version=text("x"), name=text("m.safetensors")
    )


def pickled_tensor(storage: bytes) -> bytes:
    """Pickle code for a tensor of 20 elements."""
    return REBUILD + b"(" + storage + number(0) + number(20) + b"\x85" + number(1) + b"\x85tR"


def write(path: Path, tensor: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}" + text("w") + tensor + b"s.")
    return path


@pytest.mark.parametrize(
    "target", [ORDERED + b")R", PARAMETER, WRAPPED, ORDERED, b"ctorch\nfloat32\n", b"ctorch\ndevice\n"]
)
def test_nothing_with_attributes_passes_for_a_storage(tmp_path: Path, target: bytes):
    (tmp_path / "secret").write_bytes(b"not for a model" * 9)
    where = {"offset": number(0), "numel": number(20), "dtype": b"ctorch\nuint8\n"}
    for file in (text(str(tmp_path / "secret")), remote(f"file://{tmp_path}/secret")):
        with pytest.raises(UserError, match=r"m\.pt: not a readable torch checkpoint"):
            open_weights(write(tmp_path / "m.pt", pickled_tensor(with_attributes(target, file=file, **where))))


@pytest.mark.parametrize("function", [REBUILD, PARAMETER, FROM_TYPE, WRAPPED])
@pytest.mark.parametrize("state", [b"}" + text("url") + text("x") + b"s", b"N}" + text("_call") + text("x") + b"s\x86"])
def test_a_pickle_cannot_change_what_its_functions_are(tmp_path: Path, function: bytes, state: bytes):
    with pytest.raises(UserError, match="sets attributes of a function"):
        open_weights(write(tmp_path / "m.pt", function + state + b"b"))


@pytest.mark.parametrize("value", [ORDERED + b")R", number(3), b"(" + number(3) + b"t"])
def test_what_is_no_tensor_does_not_pass_for_a_parameter(tmp_path: Path, value: bytes):
    for made in (
        PARAMETER + b"(" + value + b"\x88NtR",
        FROM_TYPE + b"(" + WRAPPED + b"N" + value + b"\x85NtR",
    ):
        with pytest.raises(UserError, match="a parameter that is no tensor"):
            open_weights(write(tmp_path / "m.pt", made))


def test_weights_lie_in_files_and_nowhere_else():
    forged: Any = argparse.Namespace(url="https://example.org/x", num_bytes=8, version="")
    with pytest.raises(UserError, match="tensor w lies in something that is no file"):
        Weights("m", {"w": TensorRecord((2,), torch.float32, (Extent(forged, 0, 2),))})
    stored = StoredObject("https://example.org/x", 8, "")
    assert Weights("m", {"w": TensorRecord((2,), torch.float32, (Extent(stored, 0, 2),))}).files() == [stored]


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=1e-5, path=pathlib.Path("x"), nested=argparse.Namespace()),
        {"best": np.float64(0.5), "epoch": np.int64(3), "flag": np.bool_(True)},
        [np.arange(5.0), np.array(["a", "b"]), np.dtype("int8")],
        collections.defaultdict(dict, {0: {"momentum": torch.ones(2)}}),
        collections.defaultdict(float),
        {int: float, "counter": collections.Counter("abca")},
        [torch.device("cuda", 1), torch.float16, torch.Size([2])],
        [pathlib.PurePosixPath("/x"), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(3)],
        [b"", b"bytes", 1j, {1, 2}, bytearray(b"x")],
    ],
    ids=lambda beside: type(beside).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_training_file_is_read_whatever_harmless_is_in_it(tmp_path: Path, beside: Any, protocol: int):
    torch.save({"state_dict": {"w": torch.ones(2)}, "beside": beside}, tmp_path / "m.pt", pickle_protocol=protocol)
    with open_weights(tmp_path / "m.pt") as weights:
        assert weights.tensor("w").tolist() == [1, 1]


def test_what_is_refused_says_the_way_out(tmp_path: Path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "model": torch.nn.Linear(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(
        UserError, match=r"nn\.modules\.linear\.Linear, which .* save only its state dict with torch\.save"
    ):
        open_weights(tmp_path / "m.pt")


def test_tensors_under_numbers_are_no_state_dict(tmp_path: Path):
    torch.save({0: torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        open_weights(tmp_path / "m.pt")
