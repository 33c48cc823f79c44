"""What one machine must show before work starts on it: GPUs and driver, disk, reach of the store, clock.

Each check looks once and returns findings; none of them raises. Decisions are functions of what was seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.data.stage import TRAIN, load_manifest
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.findings import Finding, Level
from wiseft_dist.ranks import Ranks, node_name
from wiseft_dist.run import Run

DRIVER_SECONDS = 30.0
"""A driver that hangs is a finding too."""
MAX_FILE_CLOCK_SECONDS = 5.0
"""Between a machine's clock and that of its run directory, beyond which modification times mislead people."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as ``nvidia-smi`` lists it."""

    uuid: str
    name: str
    driver: str
    total_mib: float
    free_mib: float


@dataclass(frozen=True)
class Visible:
    """What PyTorch sees of a machine's GPUs."""

    count: int
    problem: str = ""
    """Why there are none, in PyTorch's words."""


def check_here(config: RunConfig, run: Run, stage: str, ranks: Ranks, device_index: int | None) -> list[Finding]:
    """Everything that a process can look at alone; what is the whole machine's, its first process does.

    Args:
        config: The run.
        run: Its directory.
        stage: Whose resources and data count.
        ranks: This process's place.
        device_index: The process's own GPU, if it is to have one.
    """
    settings, resources = config.launch.preflight, getattr(config.launch, stage)
    assert isinstance(resources, Resources)
    found = check_gpus(
        0 if stage == "merge" else resources.gpus_per_node,
        is_isolated=resources.gpu_isolation,
        local_world_size=ranks.local_world_size,
        min_free=settings.min_free_gpu_memory,
        device_index=device_index,
    )
    if ranks.local_rank == 0:
        places = {"run directory": run.path, "temporary folder": Path(tempfile.gettempdir())}
        if config.data.cache and stage in ("finetune", "evaluate"):
            places["data cache"] = Path(config.data.cache).expanduser()
        found += check_disk(places, settings.min_free_disk_gb) + check_clock(run.path)
        found += check_store(_a_shard_of_each_store(config, run, stage))
    return found


def _a_shard_of_each_store(config: RunConfig, run: Run, stage: str) -> list[str]:
    """The first shard of the first dataset in each bucket or host that a stage reads from."""
    names = {"finetune": [TRAIN], "evaluate": list(config.data.evaluated)}.get(stage, [])
    stores: dict[str, str] = {}
    for name in names:
        try:
            shards = load_manifest(run, name).shards
        except RunError:
            continue  # not counted yet: the stage does it first, and says what it cannot read
        if shards and storage.is_remote(shards[0].url):
            stores.setdefault("/".join(shards[0].url.split("/")[:3]), shards[0].url)
    return list(stores.values())


def check_gpus(
    wanted: int, *, is_isolated: bool, local_world_size: int, min_free: float, device_index: int | None = None
) -> list[Finding]:
    """Whether a process sees the GPUs that it should, and its own is free.

    Args:
        wanted: GPUs that the job has on this machine: ``gpus_per_node``.
        is_isolated: Whether each process should see but one.
        local_world_size: Processes on this machine.
        min_free: The share of a GPU's memory that must be free.
        device_index: The process's own GPU; left out, every one that ``nvidia-smi`` lists is looked at.
    """
    if not wanted:
        return []
    listed = list_gpus()
    if isinstance(listed, str):
        return [_finding("gpu", "error", f"{listed}; gpus_per_node is {wanted}")]
    seen = visible_gpus()
    found = judge_gpus(
        listed, seen, wanted, is_isolated=is_isolated, local_world_size=local_world_size,
        chosen=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )  # fmt: skip
    is_shared = seen.count == 1 and local_world_size > 1 and not is_isolated  # by ours, which fill it one by one
    if not is_shared and not any(level == "error" for level, _ in found):
        memory = [(gpu.uuid, gpu.free_mib, gpu.total_mib) for gpu in listed]
        if device_index is not None and device_index < seen.count:
            memory = [_memory_of(device_index)]
        found += [judge_gpu_memory(*each, min_free) for each in memory]
    return [_finding("gpu", level, text) for level, text in found]


def judge_gpus(
    listed: Sequence[Gpu],
    seen: Visible,
    wanted: int,
    *,
    is_isolated: bool,
    local_world_size: int,
    chosen: str | None,
) -> list[tuple[Level, str]]:
    """What to say of a machine's GPUs.

    Args:
        listed: By ``nvidia-smi``.
        seen: By PyTorch, which heeds ``CUDA_VISIBLE_DEVICES``.
        wanted: ``gpus_per_node``.
        is_isolated: ``gpu_isolation``.
        local_world_size: Processes on this machine.
        chosen: The value of ``CUDA_VISIBLE_DEVICES``, if it is set.
    """
    only = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen})"
    driver = f"driver {listed[0].driver}" if listed else "no driver"
    if seen.count == 0:
        reason = f": {seen.problem}" if seen.problem else ""
        return [("error", f"PyTorch sees no GPU{only} of {len(listed)} that nvidia-smi lists, {driver}{reason}")]
    if 1 < seen.count < local_world_size:
        return [("error", f"{seen.count} GPUs{only} for {local_world_size} processes; gpus_per_node is {wanted}")]
    if is_isolated and seen.count > 1:
        return [("warning", f"{seen.count} GPUs are visible{only}, though gpu_isolation says one a process")]
    if not is_isolated and seen.count < wanted and not (seen.count == 1 and local_world_size > 1):
        return [("warning", f"{seen.count} GPUs are visible{only}, and gpus_per_node is {wanted}")]
    return [("ok", f"{seen.count} GPUs visible{only}, {listed[0].name if listed else 'of unknown kind'}, {driver}")]


def judge_gpu_memory(name: str, free_mib: float, total_mib: float, min_free: float) -> tuple[Level, str]:
    """Whether enough of a GPU's memory is free."""
    text = f"GPU {name} has {free_mib / 1024:.1f} of {total_mib / 1024:.1f} GiB free"
    if free_mib < min_free * total_mib:
        return "error", f"{text}, less than launch.preflight.min_free_gpu_memory={min_free:g}: another program uses it"
    return "ok", text


def list_gpus() -> list[Gpu] | str:
    """The machine's GPUs, or what is wrong with the driver. Source: ``nvidia-smi --help-query-gpu``."""
    fields = "uuid,name,driver_version,memory.total,memory.free"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DRIVER_SECONDS)
    except OSError:
        return "there is no nvidia-smi, so no driver"
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gives no answer within {DRIVER_SECONDS:.0f} s: a GPU or the driver hangs"
    if answer.returncode:
        said = (answer.stdout + answer.stderr).strip().splitlines()
        return f"nvidia-smi fails: {said[0] if said else f'exit code {answer.returncode}'}"
    return parse_gpus(answer.stdout)


def parse_gpus(text: str) -> list[Gpu]:
    """The lines of ``nvidia-smi``; what a GPU does not tell (``[N/A]``, ``[Unknown Error]``) counts as nothing."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines()]
    return [Gpu(row[0], row[1], row[2], _number(row[3]), _number(row[4])) for row in rows if len(row) == 5]


def visible_gpus() -> Visible:
    """What PyTorch says of the GPUs that this process may use."""
    import torch

    if torch.cuda.is_available():
        return Visible(torch.cuda.device_count())
    if torch.version.cuda is None:
        return Visible(0, f"PyTorch {torch.__version__} is built without CUDA")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # what CUDA's layers raise has no common class
        return Visible(0, str(error).splitlines()[0])
    return Visible(0, f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}")


def check_disk(places: Mapping[str, Path], min_free_gb: float) -> list[Finding]:
    """Whether one can write to some places and has enough room there.

    Args:
        places: By what they are: ``run directory``. One that does not exist yet counts as its nearest parent.
        min_free_gb: In 10^9 bytes.
    """
    return [_finding("disk", *_look_at_disk(what, place, min_free_gb)) for what, place in places.items()]


def check_store(urls: Sequence[str]) -> list[Finding]:
    """Whether the first byte of each of some objects arrives; it is waited for as it would be in the work itself."""
    return [_finding("store", *_read_a_byte(url)) for url in urls]


def check_clock(folder: Path) -> list[Finding]:
    """Whether this machine and the file system of a folder agree about the time."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder), prefix=".wiseft-clock-") as file:
            before = time.time()
            file.write(b".")
            file.flush()
            os.fsync(file.fileno())
            written, after = os.fstat(file.fileno()).st_mtime, time.time()
    except OSError:
        return []  # the disk's check says it
    level, text = judge_clock(before - written if written < before else max(0.0, written - after))
    return [_finding("clock", level, text)]


def judge_clock(seconds: float) -> tuple[Level, str]:
    """What to say of a difference between the clocks of a machine and a file system."""
    if abs(seconds) > MAX_FILE_CLOCK_SECONDS:
        return "warning", f"the clock and that of the run directory's file system differ by {abs(seconds):.0f} s"
    return "ok", "the clock agrees with the run directory's file system"


def _look_at_disk(what: str, place: Path, min_free_gb: float) -> tuple[Level, str]:
    try:
        there = _existing(place)
        free = shutil.disk_usage(there).free / 1e9
        with tempfile.TemporaryFile(dir=there, prefix=".wiseft-disk-") as file:
            file.write(b"." * 4096)  # a quota, or a read-only mount, is not in the number
            file.flush()
    except OSError as error:
        return "error", f"cannot write to the {what}, {place}: {error.strerror or error}"
    if free < min_free_gb:
        limit = f"launch.preflight.min_free_disk_gb={min_free_gb:g}"
        return "error", f"{free:.1f} GB are free in the {what}, {place}, less than {limit}"
    return "ok", f"{free:.1f} GB free in the {what}, {place}"


def _existing(place: Path) -> Path:
    """The place itself, or the nearest of its parents that is there."""
    return next(folder for folder in (place, *place.parents) if folder.is_dir())


def _read_a_byte(url: str) -> tuple[Level, str]:
    started = time.monotonic()
    try:
        with storage.open_bytes(url) as file:
            file.read(1)
    except (UserError, RunError, OSError) as error:
        return "error", f"a shard cannot be read: {error}"
    milliseconds = 1000 * (time.monotonic() - started)
    return "ok", f"the first byte of {url} came after {milliseconds:.0f} ms"


def _memory_of(device_index: int) -> tuple[str, float, float]:
    """Name, free and total MiB of a process's own GPU; asking opens it, so never of another's."""
    import torch

    free, total = torch.cuda.mem_get_info(device_index)
    return f"{device_index} ({torch.cuda.get_device_name(device_index)})", free / 2**20, total / 2**20


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _finding(check: str, level: Level, text: str) -> Finding:
    return Finding(check, level, text, node_name())
