"""open_clip models: created by name, JSON or folder; weights from a tag, a file or a URL; written for open_clip."""

from __future__ import annotations

import difflib
import json
import logging
import shutil
import tempfile
import textwrap
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wiseft_dist import storage
from wiseft_dist.commits import digest
from wiseft_dist.config import ModelConfig
from wiseft_dist.data.transforms import Preprocess
from wiseft_dist.errors import UserError
from wiseft_dist.models.files import CONFIG_FILE, WEIGHTS_FILE
from wiseft_dist.models.without_wandb import open_clip
from wiseft_dist.progress import progress_bar

PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True)
class Clip:
    """A CLIP model with all that is needed to use it and to write it down."""

    model: nn.Module
    config: dict[str, Any]
    """``model_cfg`` and ``preprocess_cfg``, as in an ``open_clip_config.json``."""

    @property
    def preprocess(self) -> Preprocess:
        """What the model expects of its images."""
        return preprocess_of(self.config)

    def tokenizer(self) -> Any:
        """Texts to int64 tokens ``[texts, context]``."""
        return tokenizer_of(self.config)


def preprocess_of(config: dict[str, Any]) -> Preprocess:
    """The preprocessing of an ``open_clip_config.json``."""
    size = config["model_cfg"]["vision_cfg"].get("image_size", open_clip.CLIPVisionCfg.image_size)
    return Preprocess.from_open_clip({"size": size} | config["preprocess_cfg"])


def tokenizer_of(config: dict[str, Any]) -> Any:
    """The tokenizer of an ``open_clip_config.json``."""
    with _folder_of(config) as folder:
        return open_clip.get_tokenizer(f"local-dir:{folder}")


def read_config(folder: Path) -> dict[str, Any]:
    """The ``open_clip_config.json`` of a folder."""
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    return config


def create_clip(model: ModelConfig, *, seed: int = 0) -> Clip:
    """Create the architecture and load its weights; without weights they are random, drawn from ``seed``.

    Raises:
        UserError: if the architecture, tag, file or checkpoint cannot be used, naming it.
    """
    config, weights = _resolve(model)
    torch.manual_seed(seed)
    try:
        created = _create(config)
    except Exception as error:  # open_clip builds whatever it is given and fails wherever that breaks
        raise UserError(
            f"model.architecture: {model.architecture} does not describe an open_clip model: {_reason(error)}"
        ) from error
    if weights is not None:
        load_weights(created, weights)
    return Clip(created, config)


def create_unweighted(config: dict[str, Any]) -> nn.Module:
    """The architecture of an ``open_clip_config.json`` with arbitrary weights."""
    return _create(config)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint through open_clip's own loader, which knows the formats that people have.

    Raises:
        UserError: if the file is damaged, is not a checkpoint, or belongs to another architecture.
    """
    try:
        with progress_bar(f"loading {path.name}"):
            open_clip.load_checkpoint(model, str(path), strict=True)
    except Exception as error:  # safetensors, zip, pickle and torch each have their own
        raise UserError(f"{path}: cannot be loaded as weights of this architecture: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The line of a library's message that says something, and not too much of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return textwrap.shorten(telling, 200, placeholder=" ...")


def _create(config: dict[str, Any]) -> nn.Module:
    with _folder_of(config) as folder, _quiet():
        model: nn.Module = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    return model


class _folder_of(tempfile.TemporaryDirectory[str]):
    """A passing folder with just the configuration: the form in which open_clip takes one."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(prefix="open_clip-")
        (Path(self.name) / CONFIG_FILE).write_text(json.dumps(config))


class _quiet:
    """open_clip reports on the root logger that no weights were found; here that is intended."""

    def __enter__(self) -> None:
        self._before = logging.getLogger().manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)


def _resolve(model: ModelConfig) -> tuple[dict[str, Any], Path | None]:
    """The full configuration of an architecture, and the file that holds its weights."""
    name = model.architecture.removeprefix("local-dir:")
    if name.startswith("hf-hub:"):
        return _from_hub(name, model.pretrained)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"model.architecture: {path} has no {CONFIG_FILE}.")
        return complete_config(_read_json(path / CONFIG_FILE)), _local_weights(path, model.pretrained)
    if path.suffix == ".json":
        return complete_config(_read_json(path)), _given_weights(model.pretrained)
    return _from_name(name.replace("/", "-"), model.pretrained)


def _from_name(name: str, pretrained: str | None) -> tuple[dict[str, Any], Path | None]:
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"model.architecture: {name} is neither an open_clip model nor a folder nor a JSON file.{hint}")
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    if not tag:
        if pretrained and not _looks_like_file(pretrained):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise UserError(f"model.pretrained: {pretrained} is neither a file nor a tag of {name} (tags: {tags}).")
        return complete_config({"model_cfg": config}), _given_weights(pretrained)
    return config_of_tag(name, pretrained or ""), _download(
        f"{name} {pretrained}", lambda: open_clip.download_pretrained(tag)
    )


def config_of_architecture(architecture: str) -> dict[str, Any]:
    """The ``open_clip_config.json`` of an open_clip model's name, of a name with a tag, of a folder or of a JSON file.

    Raises:
        UserError: if it is none of them.
    """
    name, colon, tag = architecture.replace("/", "-").partition(":")
    if colon and open_clip.get_pretrained_cfg(name, tag):
        return config_of_tag(name, tag)
    try:
        return _resolve(ModelConfig(architecture=architecture))[0]
    except UserError as error:
        raise UserError(str(error).replace("model.architecture:", "--architecture:")) from error


def config_of_tag(name: str, pretrained: str) -> dict[str, Any]:
    """The ``open_clip_config.json`` of an architecture with one of open_clip's pretrained tags."""
    config, tag = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, pretrained)
    if tag.get("quick_gelu"):  # weights trained with QuickGELU are silently worse without it
        config["quick_gelu"] = True
    preprocess = {key: tag[key] for key in PREPROCESS_KEYS if tag.get(key) is not None}
    return complete_config({"model_cfg": config, "preprocess_cfg": preprocess})


def _from_hub(name: str, pretrained: str | None) -> tuple[dict[str, Any], Path | None]:
    repository, fetch = name.removeprefix("hf-hub:"), open_clip.pretrained.download_pretrained_from_hf
    config = _download(name, lambda: fetch(repository, filename=CONFIG_FILE))
    weights = _given_weights(pretrained) or _download(name, lambda: fetch(repository))
    return complete_config(_read_json(config)), weights


def _given_weights(pretrained: str | None) -> Path | None:
    if pretrained is None:
        return None
    if storage.is_remote(pretrained):
        return _download(pretrained, lambda: _fetch(pretrained))
    path = Path(pretrained.removeprefix("file://")).expanduser()
    if not path.is_file():
        raise UserError(f"model.pretrained: {path} does not exist.")
    return path


def _local_weights(folder: Path, pretrained: str | None) -> Path | None:
    if pretrained is not None:
        return _given_weights(pretrained)
    names = (WEIGHTS_FILE, "open_clip_pytorch_model.bin", "model.safetensors")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _fetch(url: str) -> Path:
    """A whole copy of a remote file. The cache goes by the whole URL: many files are called ``model.pt``."""
    name = url.split("?")[0].rsplit("/", 1)[-1]
    target = Path(torch.hub.get_dir()) / "wiseft" / digest(url) / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
    try:
        if url.startswith("http"):
            urllib.request.urlretrieve(url, aside)  # raises where fewer bytes come than were announced
        else:
            with storage.open_bytes(url) as source, aside.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        aside.rename(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _download(what: str, fetch: Callable[[], str | Path]) -> Path:
    try:
        return Path(fetch())
    except Exception as error:  # urllib, requests and the hub's client each have their own
        raise UserError(f"model: {what} could not be downloaded: {_reason(error)}") from error


def _looks_like_file(pretrained: str) -> bool:
    return "/" in pretrained or Path(pretrained).suffix in {".pt", ".pth", ".bin", ".safetensors"}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"model.architecture: {path} is not readable as JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"model.architecture: {path} holds no JSON object.")
    return loaded


def complete_config(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in what open_clip would assume, so that the written configuration says it."""
    model_cfg = config.get("model_cfg", config)
    defaults = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    given = config.get("preprocess_cfg", {}) if "model_cfg" in config else {}
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": defaults | {key: given[key] for key in PREPROCESS_KEYS if key in given},
    }
