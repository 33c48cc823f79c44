"""What a stage ran on: the versions of Python and of the libraries that decide numbers, and the GPUs of its host."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = (
    *("torch", "deepspeed", "open_clip_torch", "timm", "webdataset", "numpy", "scipy", "safetensors", "pyarrow"),
    *("simplejpeg", "pillow", "obstore", "submitit", "wandb"),
)
"""By the names under which they are installed."""


def surroundings() -> dict[str, Any]:
    """For an event: ``python``, ``libraries`` by name, ``gpus`` (names; empty where none can be used). Never raises."""
    found = {name: known for name in LIBRARIES if (known := _version(name)) is not None}
    return {"python": platform.python_version(), "libraries": found, "gpus": _gpus()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Of the host; none where the process is to see none, or where the driver does not answer."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return [_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # no driver, no library, or one of another version: nothing hangs on it
        return []


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
