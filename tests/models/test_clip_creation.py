"""Every way to name a model and its weights, and a sentence for every way to get that wrong."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from tiny_clip import MODEL, plain_open_clip, same_weights, write_json

from wiseft_dist.config import ModelConfig
from wiseft_dist.errors import UserError
from wiseft_dist.models.clip import _from_name, create_clip


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_json(tmp_path_factory.mktemp("architecture") / "tiny.json"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the forms that people have them in."""
    folder = tmp_path_factory.mktemp("weights")
    state = plain_open_clip().state_dict()
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    torch.save(state, folder / "plain.pt")
    wrapped = {"epoch": 3, "name": "x", "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(wrapped, folder / "epoch_3.pt")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_json(folder / "open_clip_config.json", {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
    shutil.copy(weights / "weights.safetensors", folder / "open_clip_model.safetensors")
    return folder


def refusal(architecture: str, pretrained: str | Path | None = None) -> str:
    """The one sentence or two that creating such a model is answered with."""
    with pytest.raises(UserError) as raised:
        create_clip(ModelConfig(architecture=str(architecture), pretrained=pretrained and str(pretrained)))
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500, message
    return message


@pytest.mark.parametrize("file", ["weights.safetensors", "plain.pt", "epoch_3.pt"])
def test_local_weights_load_in_every_form(architecture: str, weights: Path, file: str) -> None:
    for pretrained in (str(weights / file), f"file://{weights / file}"):
        clip = create_clip(ModelConfig(architecture=architecture, pretrained=pretrained))
        assert same_weights(clip.model.state_dict(), plain_open_clip().state_dict())


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_brings_its_own_weights_and_preprocessing(model_folder: Path, prefix: str) -> None:
    clip = create_clip(ModelConfig(architecture=f"{prefix}{model_folder}"))
    assert same_weights(clip.model.state_dict(), plain_open_clip().state_dict())
    assert clip.preprocess.mean == (0.5, 0.5, 0.5)
    assert clip.preprocess.std == open_clip.OPENAI_DATASET_STD


def test_weights_given_by_name_win_over_those_of_the_folder(model_folder: Path, tmp_path: Path) -> None:
    other = plain_open_clip(seed=6).state_dict()
    torch.save(other, tmp_path / "other.pt")
    clip = create_clip(ModelConfig(architecture=str(model_folder), pretrained=str(tmp_path / "other.pt")))
    assert same_weights(clip.model.state_dict(), other)


def test_an_open_clip_name_is_the_model_that_open_clip_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(write_json(tmp_path / "ViT-tiny-for-tests.json"))
    clip = create_clip(ModelConfig(architecture="ViT-tiny-for-tests"), seed=3)
    torch.manual_seed(3)
    assert same_weights(clip.model.state_dict(), open_clip.create_model("ViT-tiny-for-tests").state_dict())


def test_a_model_without_an_image_size_has_open_clips_default(tmp_path: Path) -> None:
    vision = {key: value for key, value in MODEL["vision_cfg"].items() if key != "image_size"} | {"patch_size": 112}
    path = write_json(tmp_path / "model.json", MODEL | {"vision_cfg": vision})
    created = create_clip(ModelConfig(architecture=str(path)))
    assert created.preprocess.size == created.model.visual.image_size[0] == 224


def test_random_weights_follow_the_seed(architecture: str) -> None:
    first, again, other = (
        create_clip(ModelConfig(architecture=architecture), seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert same_weights(first, again) and not same_weights(first, other)


def test_a_misspelt_architecture_is_answered_with_the_nearest() -> None:
    assert refusal("ViT-B16").endswith("Did you mean ViT-B-16?")


def test_an_unknown_tag_is_answered_with_the_tags_there_are() -> None:
    message = refusal("ViT-B-16", "opneai")
    assert "opneai" in message and "openai, " in message and "laion400m_e32" in message


def test_a_missing_file_is_named(architecture: str, tmp_path: Path) -> None:
    assert refusal(architecture, tmp_path / "none.pt") == f"model.pretrained: {tmp_path}/none.pt does not exist."
    assert "none.json is not readable as JSON" in refusal(str(tmp_path / "none.json"))
    assert refusal(str(tmp_path)) == f"model.architecture: {tmp_path} has no open_clip_config.json."


@pytest.mark.parametrize(
    "content", [[], {"embed_dim": 16}, MODEL | {"vision_cfg": 3}, MODEL | {"colour": "red"}, {"model_cfg": 3}]
)
def test_a_json_file_that_describes_no_model_is_named(tmp_path: Path, content: object) -> None:
    path = write_json(tmp_path / "model.json", content)
    assert f"model.architecture: {path}" in refusal(str(path))


@pytest.mark.parametrize("file", ["weights.safetensors", "plain.pt"])
def test_a_damaged_checkpoint_is_named(architecture: str, weights: Path, tmp_path: Path, file: str) -> None:
    damaged = tmp_path / file
    damaged.write_bytes((weights / file).read_bytes()[:5000])
    assert str(damaged) in refusal(architecture, damaged)
    damaged.write_bytes(b"")
    assert str(damaged) in refusal(architecture, damaged)


def test_weights_of_another_architecture_are_refused_by_what_does_not_fit(weights: Path, tmp_path: Path) -> None:
    deeper = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"layers": 2}}
    path = write_json(tmp_path / "deeper.json", deeper)
    assert "visual.transformer.resblocks.1" in refusal(str(path), weights / "plain.pt")
    narrower = MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"width": 16}}
    path = write_json(tmp_path / "narrower.json", narrower)
    assert "size mismatch for visual." in refusal(str(path), weights / "weights.safetensors")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts what was asked for, and can announce more bytes than it sends."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.cut = False
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if not self.server.cut:
            return super().do_GET()
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    shutil.copytree(weights, folder / "first")
    (folder / "second").mkdir()
    torch.save(plain_open_clip(seed=6).state_dict(), folder / "second" / "plain.pt")
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["epoch_3.pt", "weights.safetensors"])
def test_a_url_is_downloaded_once(architecture: str, server: Server, file: str) -> None:
    model = ModelConfig(architecture=architecture, pretrained=server.url(f"first/{file}"))
    for _ in range(2):
        assert same_weights(create_clip(model).model.state_dict(), plain_open_clip().state_dict())
    assert server.requests == [f"/first/{file}"]


def test_two_urls_that_end_in_the_same_name_are_two_files(architecture: str, server: Server) -> None:
    for folder, seed in (("first", 5), ("second", 6)):
        clip = create_clip(ModelConfig(architecture=architecture, pretrained=server.url(f"{folder}/plain.pt")))
        assert same_weights(clip.model.state_dict(), plain_open_clip(seed=seed).state_dict())


def test_a_download_that_breaks_off_is_refused_and_leaves_nothing_behind(architecture: str, server: Server) -> None:
    url = server.url("first/plain.pt")
    server.cut = True
    assert f"{url} could not be downloaded" in refusal(architecture, url)
    server.cut = False
    clip = create_clip(ModelConfig(architecture=architecture, pretrained=url))
    assert same_weights(clip.model.state_dict(), plain_open_clip().state_dict())


def test_a_url_that_is_not_there_is_named(architecture: str, server: Server) -> None:
    assert "first/none.pt could not be downloaded: HTTP Error 404" in refusal(architecture, server.url("first/none.pt"))


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b88k", None)])
def test_weights_trained_with_quick_gelu_get_it_in_the_written_configuration(
    tag: str, quick: bool | None, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clip.download_pretrained", lambda _: str(weights / "plain.pt"))
    config, path = _from_name("ViT-B-16", tag)
    assert config["model_cfg"].get("quick_gelu") is quick
    assert path == weights / "plain.pt"
    assert "quick_gelu" not in open_clip.get_model_config("ViT-B-16")
