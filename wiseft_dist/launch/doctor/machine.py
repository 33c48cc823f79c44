"""What this machine is and has: software, GPUs, cores, memory, limits, disks, the way to W&B."""

from __future__ import annotations

import io
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from wiseft_dist.code_identity import PACKAGE, code_identity
from wiseft_dist.config import RunConfig, WandbConfig
from wiseft_dist.errors import UserError
from wiseft_dist.findings import Finding, Level
from wiseft_dist.node_checks import check_clock, check_disk, check_gpus, list_gpus
from wiseft_dist.ranks import node_name
from wiseft_dist.tracking import wandb_mode
from wiseft_dist.tracking.login import wandb_login

PACKAGES = ("torch", "torchvision", "deepspeed", "open_clip_torch", "webdataset", "submitit", "wandb", "obstore")
PROBE_SECONDS = 120.0
"""Importing PyTorch from a cold shared file system takes long; a GPU that hangs takes for ever."""
LEAST_SHARED_GIB = 1.0
"""A DataLoader's workers hand over their batches in /dev/shm."""
LEAST_OPEN_FILES = 4096
UNLIMITED = 2**60
"""Bytes; cgroups write numbers near 2^63 where there is no limit."""


def check_machine(config: RunConfig | None, *, wanted_gpus: int = 0) -> list[Finding]:
    """Everything about the machine that runs this.

    Args:
        config: A run; its cache, its directory and its W&B settings count.
        wanted_gpus: GPUs that this process's job was given here.
    """
    checks = [*_software(), *check_resources(), *_decoders(), *check_wandb(config)]
    found = [_finding(*each) for each in checks]
    return found + check_devices(wanted_gpus) + check_places(config)


def check_devices(wanted: int) -> list[Finding]:
    """Driver, GPUs, and an all-reduce on each of them, or on the CPU."""
    from wiseft_dist.launch.doctor.torch_probe import probe

    listed = list_gpus()
    if wanted or not isinstance(listed, str):
        num_gpus = wanted or len(listed)
        found = check_gpus(num_gpus, is_isolated=False, local_world_size=1, min_free=0.0)
    else:
        found = [_finding("gpu", "ok", f"none here: {listed}")]
    told = probe(PROBE_SECONDS)
    if isinstance(told, str):
        return [*found, _finding("all-reduce", "error", f"PyTorch fails on its devices: {told}")]
    if told["nccl"]:
        found.append(_finding("nccl", "ok", told["nccl"]))
    return [*found, *(_finding("all-reduce", *_judge_device(device)) for device in told["devices"])]


def _judge_device(device: dict[str, Any]) -> tuple[Level, str]:
    name = device["name"]
    if device["problem"]:
        return "error", f"{name} cannot do it: {device['problem']}"
    if "capability" not in device:
        return "ok", f"{name} (gloo)"
    text = (
        f"{name}, compute capability {device['capability']}, "
        f"{device['free_gib']:.1f} of {device['total_gib']:.1f} GiB free"
    )
    if not device["has_bf16"]:
        return "warning", f"{text}; no bf16 in hardware: use finetune.precision=fp16 or fp32"
    return "ok", f"{text}, bf16"


def _software() -> Iterator[tuple[str, Level, str]]:
    yield "python", "ok", f"{platform.python_version()}, {sys.executable}"
    yield "wiseft", "ok", str(code_identity())
    tested = _tested_versions()
    for name in PACKAGES:
        yield name, *judge_package(name, tested.get(name.lower().replace("_", "-")))


def judge_package(name: str, tested: str | None) -> tuple[Level, str]:
    """Whether a package is there in a version that this one asks for."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "error", f"is not installed: `pip install {name}`, or install wiseft_dist again"
    wanted = _requirement(name)
    if wanted and not wanted.specifier.contains(version, prereleases=True):
        return "error", f"{version}, and wiseft_dist needs {wanted.specifier}: `pip install '{wanted}'`"
    return "ok", version + (f" (tested with {tested})" if tested not in (None, version.partition("+")[0]) else "")


def _requirement(name: str) -> Any:
    """What the installed wiseft_dist says of a package; nothing where it is not installed, or says nothing."""
    from packaging.requirements import Requirement

    try:
        wanted = metadata.requires("wiseft_dist") or []
    except metadata.PackageNotFoundError:
        return None
    return next((given for line in wanted if (given := Requirement(line)).name.lower() == name.lower()), None)


def _tested_versions() -> dict[str, str]:
    """Of ``constraints.txt``, in a checkout."""
    file = PACKAGE.parent / "constraints.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    pairs = (line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def check_resources() -> Iterator[tuple[str, Level, str]]:
    """Cores, memory, shared memory and open files, as far as this process may use them."""
    import psutil

    cores, share = len(os.sched_getaffinity(0)), _cgroup_cores()
    limited = f", of which the cgroup gives {share:g}" if share and share < cores else ""
    yield "cores", "ok", f"{cores} of {os.cpu_count()}{limited}"
    memory, limit = psutil.virtual_memory(), _cgroup_bytes()
    limited = f"; the cgroup gives {limit / 2**30:.1f}" if limit and limit < memory.total else ""
    yield "memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available{limited}"
    yield "/dev/shm", *_judge_shared_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < LEAST_OPEN_FILES and soft != resource.RLIM_INFINITY:
        advice = f"`ulimit -n {min(65536, hard) if hard > 0 else 65536}` in launch.STAGE.setup raises it"
        yield "open files", "warning", f"{soft} at most, which many data workers may exceed: {advice}"
    else:
        yield "open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft} at most"


def _judge_shared_memory() -> tuple[Level, str]:
    try:
        usage = shutil.disk_usage("/dev/shm")
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            file.write(b".")
    except OSError as error:
        return "error", f"cannot be used ({error.strerror}), and data workers need it: mount it in the container"
    text = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free"
    if usage.free < LEAST_SHARED_GIB * 2**30:
        return "warning", f"{text}: data workers hand over batches there; give it more (docker's --shm-size)"
    return "ok", text


def _cgroup_cores() -> float | None:
    """CPUs that cgroup v2 gives this container, if it limits them."""
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _cgroup_bytes() -> int | None:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _first_line(file)
        if text.isdigit() and int(text) < UNLIMITED:
            return int(text)
    return None


def _first_line(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""


def _decoders() -> Iterator[tuple[str, Level, str]]:
    """Whether pictures decode: libjpeg-turbo by simplejpeg, the rest by Pillow."""
    try:
        import numpy as np
        from PIL import Image

        from wiseft_dist.data.decode import decode

        for kind in ("jpeg", "png", "webp"):
            stream = io.BytesIO()
            Image.new("RGB", (32, 24), (200, 100, 50)).save(stream, kind)
            if np.abs(decode(stream.getvalue())[0, 0].astype(int) - (200, 100, 50)).max() > 8:
                raise ValueError(f"a {kind} comes out in other colours")
    except Exception as error:  # whatever is wrong with them is what was asked for
        yield "decoders", "error", f"{type(error).__name__}: {error}; install simplejpeg and pillow again"
    else:
        yield "decoders", "ok", f"JPEG by simplejpeg {metadata.version('simplejpeg')}, PNG and WebP by Pillow"


def check_wandb(config: RunConfig | None) -> Iterator[tuple[str, Level, str]]:
    """Whether W&B can be written to, and why it is or is not; a key is looked for and never read out."""
    settings = config.wandb if config else WandbConfig()
    try:
        mode = wandb_mode(settings)
    except UserError as error:
        yield "W&B", "error", str(error)
        return
    try:
        login = wandb_login()
    except ImportError as error:
        level: Level = "ok" if mode == "disabled" else "warning"
        yield "W&B", level, f"mode {mode} ({_reason(settings)}); the package wandb cannot be used ({error})"
        return
    text = f"mode {mode} ({_reason(settings)}), {'a' if login.has_key else 'no'} key"
    if mode == "disabled":
        yield "W&B", "ok", f"{text}; nothing is recorded for it, `wiseft sync RUN` can send a run later"
    elif mode == "offline":
        hint = "; wandb.mode=online uses the key" if login.has_key and settings.mode is None else ""
        yield "W&B", "ok", f"{text}; nothing is sent, `wiseft sync RUN` sends it later{hint}"
    elif not login.has_key:
        yield "W&B", "warning", f"{text}: `wandb login`, or set WANDB_API_KEY; runs go on without it"
    elif problem := login.unreachable():
        yield "W&B", "warning", f"{text}; {login.shown} cannot be reached ({problem}): set wandb.mode=offline here"
    else:
        yield "W&B", "ok", f"{text}; {login.shown} can be reached"


def _reason(config: WandbConfig) -> str:
    """What decides on W&B's mode, as :func:`wandb_mode` does."""
    if config.mode is not None:
        return "wandb.mode"
    if os.environ.get("WANDB_MODE"):
        return "WANDB_MODE"
    return f"{'' if os.environ.get('WANDB_API_KEY') else 'no '}WANDB_API_KEY"


def check_places(config: RunConfig | None) -> list[Finding]:
    """Room and the right to write where things are written."""
    places = {"working directory": Path.cwd(), "temporary folder": Path(tempfile.gettempdir())}
    least = 1.0
    if config is not None:
        least = config.launch.preflight.min_free_disk_gb
        places = {"run directory": Path(config.output), "temporary folder": places["temporary folder"]}
        if config.data.cache:
            places["data cache"] = Path(config.data.cache).expanduser()
    return check_disk(places, least) + check_clock(next(iter(places.values())))


def _finding(check: str, level: Level, text: str) -> Finding:
    return Finding(check, level, text, node_name())
