"""Reading checkpoints that nobody vouches for: what is refused, and that nothing in them runs."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from real_checkpoints import same_bits

from wiseft_dist.errors import UserError
from wiseft_dist.weights.sources import open_weights

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensors() -> dict[str, torch.Tensor]:
    """One of every dtype and of odd shapes, none and a single element among them."""
    shapes = [(3, 5), (), (1,), (7,), (2, 0, 3), (1, 77)]
    return {
        f"{dtype}.{index}".removeprefix("torch."): torch.randint(-99, 99, shape).to(dtype)
        for dtype in DTYPES
        for index, shape in enumerate(shapes)
    }


def write_archive(path: Path, pickled: bytes, **storages: bytes) -> Path:
    """A torch archive around a pickle made by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_safetensors(path: Path, header: Any, data: bytes) -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_every_dtype_and_shape_of_a_safetensors_file_is_read(tmp_path: Path):
    saved = tensors()
    safetensors.torch.save_file(saved, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with open_weights(tmp_path / "m.safetensors") as weights:
        assert weights.keys() == saved.keys()
        assert all(same_bits(weights.tensor(name), saved[name]) for name in saved)


def test_every_dtype_and_shape_of_a_torch_file_is_read(tmp_path: Path):
    saved = tensors()
    torch.save(saved, tmp_path / "m.pt")
    with open_weights(tmp_path / "m.pt") as weights:
        assert weights.keys() == saved.keys()
        assert all(same_bits(weights.tensor(name), saved[name]) for name in saved)


def test_views_into_a_shared_storage_keep_their_place(tmp_path: Path):
    flat = torch.arange(20.0)
    saved = {"a": flat[3:9].view(2, 3), "b": flat[9:], "parameter": torch.nn.Parameter(flat[1:2])}
    torch.save(saved, tmp_path / "m.pt")
    with open_weights(tmp_path / "m.pt") as weights:
        assert all(same_bits(weights.tensor(name), saved[name].detach()) for name in saved)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}], ids=["plain", "nested"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_torch_state_dict_is_found_plain_or_nested_and_without_its_prefix(tmp_path: Path, wrap: Any, prefix: str):
    module = torch.nn.BatchNorm1d(3)
    torch.save(wrap({prefix + name: value for name, value in module.state_dict().items()}), tmp_path / "m.pt")
    with open_weights(tmp_path / "m.pt") as weights:
        assert weights.keys() == module.state_dict().keys()


def test_a_folder_is_read_by_its_index_or_as_all_its_files(tmp_path: Path):
    for part in "ab":
        safetensors.torch.save_file({part: torch.ones(2)}, tmp_path / f"{part}.safetensors")
    assert open_weights(tmp_path).keys() == {"a", "b"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    assert open_weights(tmp_path).keys() == {"a"}
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(UserError, match=r"gone\.safetensors"):
        open_weights(tmp_path)
    for broken in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
            open_weights(tmp_path)


def test_a_tensor_in_two_files_of_one_folder_is_refused(tmp_path: Path):
    for file in ("model.safetensors", "open_clip_model.safetensors"):
        safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / file)
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors: tensor a is in another file"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"no checkpoint", b"\x80\x02}q\x00.", os.urandom(1000)],
    ids=["empty", "start of a zip", "text", "bare pickle", "noise"],
)
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        open_weights(tmp_path / name)


def test_nothing_and_an_empty_folder_are_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.pt: no such checkpoint"):
        open_weights(tmp_path / "gone.pt")
    with pytest.raises(UserError, match=tmp_path.name):
        open_weights(tmp_path)


@pytest.mark.parametrize("saved", [3, [torch.ones(2)], {}, {"step": 3}])
def test_a_torch_file_without_tensors_by_name_is_refused(tmp_path: Path, saved: Any):
    torch.save(saved, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"m\.pt: holds no state dict"):
        open_weights(tmp_path / "m.pt")


def test_a_transposed_tensor_is_refused_by_name(tmp_path: Path):
    torch.save({"weight": torch.ones(2, 3).T}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="weight is stored transposed"):
        open_weights(tmp_path / "m.pt")


class RunsOnLoad:
    """Unpickled by Python, this runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["m.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_pickle_that_runs_a_command_is_refused_and_nothing_runs(tmp_path: Path, name: str):
    mark = tmp_path / "it_ran"
    torch.save({"weight": torch.ones(2), "extra": RunsOnLoad(f"touch {mark}")}, tmp_path / name)
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system"):
        open_weights(tmp_path / name if name == "m.pt" else tmp_path)
    assert not mark.exists()
    torch.load(tmp_path / name, weights_only=False)
    assert mark.exists(), "the pickle is harmless: this test shows nothing"


@pytest.mark.parametrize("target", [b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"ctorch\nload\n", b"cos\nsystem\n"])
def test_a_function_that_no_checkpoint_needs_is_refused_even_uncalled(tmp_path: Path, target: bytes):
    with pytest.raises(UserError, match="which no checkpoint needs"):
        open_weights(write_archive(tmp_path / "m.pt", b"\x80\x02" + target + b"."))


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
"""Pickle code for the persistent object of a storage `0` with four floats."""


def pickled_tensor(offset: int, size: int, stride: int, then: bytes = b"") -> bytes:
    """Pickle code for `{"w": a 1-D tensor in that storage}`."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"J" + struct.pack("<i", offset)
    tensor += b"J" + struct.pack("<i", size) + b"\x85J" + struct.pack("<i", stride) + b"\x85\x89}tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + then + b"s."


def test_a_tensor_made_by_hand_is_read(tmp_path: Path):
    """Else the refusals below could be for another reason."""
    path = write_archive(tmp_path / "m.pt", pickled_tensor(1, 3, 1), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    with open_weights(path) as weights:
        assert weights.tensor("w").tolist() == [2, 3, 4]


@pytest.mark.parametrize(("offset", "size", "stride"), [(0, 5, 1), (2, 3, 1), (-1, 2, 1), (0, 3, 2), (0, -1, 1)])
def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path: Path, offset: int, size: int, stride: int):
    path = write_archive(tmp_path / "m.pt", pickled_tensor(offset, size, stride), **{"0": bytes(16)})
    with pytest.raises(UserError, match="reaches outside its storage"):
        open_weights(path)


def test_a_storage_that_claims_more_than_the_file_has_is_refused(tmp_path: Path):
    path = write_archive(tmp_path / "m.pt", pickled_tensor(0, 4, 1), **{"0": bytes(12)})
    with pytest.raises(UserError, match="claims 4 elements in 12 bytes"):
        open_weights(path)


def test_a_pickle_cannot_point_a_tensor_at_another_file(tmp_path: Path):
    """BUILD sets an object's attributes: `{"file": "/etc/passwd"}` on a tensor would leak that file into a model."""
    state = pickle.dumps({"file": "/etc/passwd", "offset": 0}, protocol=2)[2:-1]
    path = write_archive(tmp_path / "m.pt", pickled_tensor(0, 4, 1, then=state + b"b"), **{"0": bytes(16)})
    with pytest.raises(UserError, match=r"m\.pt"):
        open_weights(path)


def test_no_damage_to_a_pickle_gets_past_the_refusal(tmp_path: Path):
    torch.save({"a": torch.ones(3, 2), "step": 7, "b": torch.nn.Parameter(torch.ones(2))}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        pickled = archive.read("whole/data.pkl")
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(pickled)
        damaged[int(torch.randint(len(pickled), (), generator=generator))] = int(
            torch.randint(256, (), generator=generator)
        )
        path = write_archive(tmp_path / "m.pt", bytes(damaged), **{"0": bytes(24), "1": bytes(8)})
        try:
            open_weights(path)
        except UserError:
            refused += 1
    assert refused > 100


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "num_bytes"),
    [
        ({"w": GOOD}, 12),
        ({"w": GOOD}, 20),
        ({"w": GOOD | {"data_offsets": [8, 24]}}, 24),
        ({"w": GOOD | {"data_offsets": [-16, 0]}}, 16),
        ({"w": GOOD | {"data_offsets": [16, 0]}}, 16),
        ({"w": GOOD | {"data_offsets": [0, 1 << 60]}}, 16),
        ({"w": GOOD | {"shape": [2, 3]}}, 16),
        ({"w": GOOD | {"shape": [-2, -2]}}, 16),
        ({"w": GOOD | {"shape": [2.0, 2]}}, 16),
        ({"w": GOOD | {"shape": "22"}}, 16),
        ({"w": GOOD | {"shape": None}}, 16),
        ({"w": GOOD | {"dtype": "F31"}}, 16),
        ({"w": GOOD | {"dtype": "F16"}}, 16),
        ({"w": {"dtype": "F32", "shape": [4]}}, 16),
        ({"w": GOOD, "v": GOOD}, 16),
        ({"w": []}, 16),
        ({"w": 3}, 16),
        ([GOOD], 16),
        (3, 16),
        (b"{", 16),
        (b"\xff\xfe", 16),
        (b"[" * 100_000, 16),
    ],
)
def test_a_safetensors_header_that_lies_is_refused_by_file(tmp_path: Path, header: Any, num_bytes: int):
    write_safetensors(tmp_path / "good.safetensors", {"w": GOOD}, bytes(16))
    assert open_weights(tmp_path / "good.safetensors").keys() == {"w"}
    with pytest.raises(UserError, match=r"bad\.safetensors: not a readable safetensors file"):
        open_weights(write_safetensors(tmp_path / "bad.safetensors", header, bytes(num_bytes)))


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 10_000])
def test_a_safetensors_header_longer_than_its_file_is_refused(tmp_path: Path, length: int):
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    with pytest.raises(UserError, match="shorter than its header says"):
        open_weights(path)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.uint16, "U16"),
        (torch.uint32, "U32"),
        (torch.uint64, "U64"),
        (torch.complex64, "C64"),
    ],
)
def test_a_dtype_that_merging_has_not_is_refused_by_name(tmp_path: Path, dtype: torch.dtype, said: str):
    saved = {"a": torch.ones(2), "w": torch.zeros(2, dtype=dtype)}
    safetensors.torch.save_file(saved, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=rf"m\.safetensors: dtype {said} of tensor w is not supported; convert it"):
        open_weights(tmp_path / "m.safetensors")


def test_a_header_longer_than_the_format_allows_is_refused_unread(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 200_000_000)
    with pytest.raises(UserError, match="header has 100,000,001 bytes, and the format allows 100,000,000"):
        open_weights(path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"w": torch.ones(100)}, path)
    with open_weights(path) as weights:
        os.truncate(path, 200)
        with pytest.raises(UserError, match=r"m\.safetensors: ends at byte 200"):
            weights.read("w")
