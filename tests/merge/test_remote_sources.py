"""Checkpoints on a real web server and a real S3 store: equal to those on disk, and no byte more than is needed."""

import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import swift_store
import torch
from fault_proxy import FaultProxy
from file_server import WithoutRanges, serve, without_logins
from real_checkpoints import Checkpoint, same_bits
from swift_store import SwiftStore

from wiseft_dist import storage
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.weights.fisher import open_fisher
from wiseft_dist.weights.inspect import inspect
from wiseft_dist.weights.sources import open_weights

Written = Callable[[int, str], Checkpoint]
Converted = Callable[[int, str], Path]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Faults are over in seconds, and no login of whoever runs the tests is used."""
    without_logins(monkeypatch, tmp_path_factory.mktemp("home"))
    monkeypatch.setenv("WISEFT_STORE_TRIES", "8")
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "0.5")


@pytest.fixture
def bucket(swift: SwiftStore, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in swift_store.environment(swift.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "5")
    return "s3://bucket"


def upload(folder: Path, url: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    return url


def assert_same(source: str, local: Path) -> None:
    with open_weights(local) as expected, open_weights(source) as weights, ThreadPoolExecutor(4) as pool:
        assert weights.keys() == expected.keys()
        tensors = dict(zip(weights, pool.map(weights.tensor, weights), strict=True))
        assert [name for name in tensors if not same_bits(tensors[name], expected.tensor(name))] == []
        assert [record.extents for record in weights.values()] != [record.extents for record in expected.values()]


def write_model(folder: Path) -> Path:
    """safetensors in two files with an index, and a torch file beside them."""
    saved = {name: torch.randn(50, 30) for name in "abc"}
    safetensors.torch.save_file({"a": saved["a"], "b": saved["b"]}, folder / "m-1.safetensors")
    safetensors.torch.save_file({"c": saved["c"]}, folder / "m-2.safetensors")
    files = {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    torch.save({"state_dict": saved}, folder / "m.pt")
    return folder


@pytest.mark.parametrize("case", ["1-bf16", "2-fp32", "3-fp32"])
def test_a_deepspeed_checkpoint_on_a_web_server_has_equal_bits(zero_checkpoint: Written, case: str):
    checkpoint = zero_checkpoint(2, case)
    with serve(checkpoint.folder) as url:
        assert_same(f"{url}/tag", checkpoint.tag)


def test_latest_is_followed_on_a_web_server(zero_checkpoint: Written, served: Path, web: str):
    shutil.copytree(zero_checkpoint(2, "2-fp32").tag, served / "step_3")
    (served / "latest").write_text("step_3")
    assert_same(f"{web}/", served)


@pytest.mark.parametrize("case", ["2-fp32", "3-fp32"])
def test_a_universal_checkpoint_on_a_web_server_has_equal_bits(universal_checkpoint: Converted, case: str):
    folder = universal_checkpoint(3, case)
    with serve(folder.parent) as url:
        assert_same(f"{url}/tag", folder)


@pytest.mark.parametrize("name", ["m-1.safetensors", "m.safetensors.index.json", "m.pt"])
def test_a_file_and_an_index_on_a_web_server_have_equal_bits(served: Path, web: str, name: str):
    write_model(served)
    assert_same(f"{web}/{name}", served / name)


def test_adams_second_moment_on_a_web_server_has_equal_bits(zero_checkpoint: Written):
    checkpoint = zero_checkpoint(2, "3-fp32")
    with serve(checkpoint.folder) as url, open_fisher(f"{url}/tag") as fisher:
        expected = checkpoint.states()["exp_avg_sq"]
        assert fisher.keys() == expected.keys()
        assert [name for name in expected if not same_bits(fisher.tensor(name), expected[name])] == []


def test_a_missing_rank_on_a_web_server_is_named(zero_checkpoint: Written, served: Path, web: str):
    shutil.copytree(zero_checkpoint(2, "2-fp32").tag, served / "tag")
    (served / "tag/zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match=r"/tag: the optimizer file of rank 1 of 2 is missing"):
        open_weights(f"{web}/tag")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.safetensors", r"gone\.safetensors: no such checkpoint"),
        ("", "a web server does not list its files; name one file, or the index"),
    ],
)
def test_what_is_not_there_on_a_web_server_is_a_sentence(served: Path, web: str, name: str, message: str):
    write_model(served)
    with pytest.raises(UserError, match=message):
        open_weights(f"{web}/{name}")


def test_breaks_in_mid_read_change_no_bit(zero_checkpoint: Written, served: Path, web: str):
    write_model(served)
    shutil.copytree(zero_checkpoint(2, "2-fp32").tag, served / "tag")
    with FaultProxy(web, faults=25, probability=0.4, seed=3, stall=1) as proxy:
        for name in ("tag", "m.safetensors.index.json", "m.pt"):
            assert_same(f"{proxy.url}/{name}", served / name)
        assert proxy.num_faults >= 15


def test_a_server_that_goes_away_is_named_with_the_byte(served: Path, web: str, monkeypatch: pytest.MonkeyPatch):
    write_model(served)
    monkeypatch.setenv("WISEFT_STORE_TRIES", "2")
    with FaultProxy(web) as proxy, open_weights(f"{proxy.url}/m-1.safetensors") as weights:
        proxy.faults_left = 1000
        with pytest.raises(RunError, match=r"m-1\.safetensors: gave up at byte [\d,]+ after 2 tries"):
            weights.read("a")
        proxy.faults_left = 0
        assert len(weights.read("a")) == 1500


def test_a_model_that_is_replaced_after_it_was_opened_is_refused(served: Path, web: str):
    write_model(served)
    with open_weights(f"{web}/m-2.safetensors") as weights:
        before = weights.fingerprint()
        safetensors.torch.save_file({"c": torch.zeros(50, 30)}, served / "m-2.safetensors")
        with pytest.raises(UserError, match="was replaced since it was listed"):
            weights.read("c")
    with open_weights(f"{web}/m-2.safetensors") as weights:
        assert weights.fingerprint().keys() == before.keys() and weights.fingerprint() != before


def test_a_server_without_ranges_is_refused(served: Path):
    write_model(served)
    with (
        serve(served, WithoutRanges) as url,
        pytest.raises(UserError, match="sends whole files only; download it"),
    ):
        open_weights(f"{url}/m-2.safetensors")


def test_a_url_with_a_signature_is_refused():
    with pytest.raises(UserError, match="this URL carries credentials"):
        open_weights("https://host/m.safetensors?X-Amz-Signature=secret")


def test_the_masters_of_a_checkpoint_with_adams_state_are_a_third_of_its_bytes(served: Path, web: str):
    """The rest, Adam's moments, never crosses the network."""
    shape, generator = (1000, 1000), random.Random(0)
    for rank in range(2):
        masters, *moments = (torch.full((shape[0] * shape[1] // 2,), generator.random()) for _ in range(3))
        state = {
            "single_partition_of_fp32_groups": [masters],
            "partition_count": 2,
            "zero_stage": 2,
            "base_optimizer_state": {"state": {0: dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))}},
        }
        torch.save({"optimizer_state_dict": state}, served / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    torch.save({"module": {}, "param_shapes": [{"w": torch.Size(shape)}]}, served / "mp_rank_00_model_states.pt")
    num_bytes = sum(path.stat().st_size for path in served.glob("*optim_states.pt"))
    with FaultProxy(web) as proxy:
        with open_weights(f"{proxy.url}/") as weights:
            sent_by_opening = sum(request.sent for request in proxy.requests if request.method == "GET")
            assert sent_by_opening < num_bytes / 25
            assert weights.tensor("w").shape == shape
        sent = sum(request.sent for request in proxy.requests if request.method == "GET")
    assert num_bytes / 3 < sent < num_bytes * 0.38


@pytest.mark.swift
def test_every_kind_on_a_store_has_equal_bits(
    zero_checkpoint: Written, universal_checkpoint: Converted, bucket: str, served: Path
):
    checkpoint, universal = zero_checkpoint(2, "2-fp32"), universal_checkpoint(3, "3-fp32")
    assert_same(upload(checkpoint.tag, f"{bucket}/zero/tag"), checkpoint.tag)
    storage.write_text(f"{bucket}/zero/latest", "tag")
    assert_same(f"{bucket}/zero", checkpoint.tag)
    assert_same(upload(universal, f"{bucket}/universal/tag"), universal)
    model = upload(write_model(served), f"{bucket}/model")
    for name in ("", "m-1.safetensors", "m.safetensors.index.json", "m.pt"):
        assert_same(f"{model}/{name}".rstrip("/"), served / name)


@pytest.mark.swift
def test_a_store_is_inspected_by_its_objects(zero_checkpoint: Written, bucket: str):
    checkpoint = zero_checkpoint(2, "2-fp32")
    url = upload(checkpoint.tag, f"{bucket}/inspected/tag")
    remote, local = inspect(url), inspect(checkpoint.tag)
    assert (remote.kind, remote.tensors, remote.num_bytes) == (local.kind, local.tensors, local.num_bytes)
    assert remote.files == {f"{url}/{Path(place).name}": size for place, size in local.files.items()}
    with open_weights(url) as weights:
        assert weights.fingerprint()[next(iter(remote.files))]["version"]


@pytest.mark.swift
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"s3://bucket/nothing: neither a DeepSpeed checkpoint nor a folder"),
        ("stale", r"s3://bucket/stale/latest names step_9, which is not there"),
    ],
)
def test_what_is_not_there_on_a_store_is_a_sentence(bucket: str, name: str, message: str):
    storage.write_text(f"{bucket}/stale/latest", "step_9")
    with pytest.raises(UserError, match=message):
        open_weights(f"{bucket}/{name}")
