"""Whether a model's local weight files are whole, from their headers alone and without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.config import MergeConfig, ModelConfig
from wiseft_dist.errors import UserError

TORCH_SUFFIXES = (".bin", ".pt", ".pth")


def check_model_files(model: ModelConfig) -> None:
    """Open what can be opened before any job is: a torn copy should not wait for its turn in a queue.

    Raises:
        UserError: naming a file that cannot be weights.
    """
    for file in _local_files(model):
        try:
            _check_safetensors(file) if file.suffix == ".safetensors" else _check_torch(file)
        except Exception as error:  # safetensors' own errors share no public base class with the system's
            raise UserError(
                f"model: {file} is not readable as weights ({error}). Download or copy it again."
            ) from error


def check_merged_models(merge: MergeConfig) -> None:
    """Look for the files and folders of further models; what is in stores or has a tag is opened by the merge.

    Raises:
        UserError: naming one that is not there.
    """
    for setting in ("models", "fisher"):
        for source in getattr(merge, setting):
            if not storage.is_remote(source) and ":" not in source and not Path(source).exists():
                raise UserError(f"merge.{setting}: {source} is not there.")


def _local_files(model: ModelConfig) -> list[Path]:
    """The weights named by the configuration, else those in the architecture's folder."""
    source = Path(model.pretrained or model.architecture)
    files = source.iterdir() if source.is_dir() else iter([source])
    return sorted(file for file in files if file.suffix in (".safetensors", *TORCH_SUFFIXES) and file.is_file())


def _check_safetensors(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="numpy"):
        pass


def _check_torch(file: Path) -> None:
    """A zip archive, whose directory is at its end, or an old pickle."""
    with file.open("rb") as handle:
        start = handle.read(2)
    if start == b"PK":
        zipfile.ZipFile(file).close()
    elif start[:1] != b"\x80":
        raise ValueError("neither a zip archive nor a pickle")
