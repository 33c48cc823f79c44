"""Where the stages' processes live, and what is done so that they start well and come back."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from wiseft_dist.config.section import Section

STAGE_SECTIONS = ("finetune", "merge", "evaluate", "report")
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)S?(_|$)", re.IGNORECASE)
"""Names of variables that hold secrets; ``TOKENIZERS_PARALLELISM`` is none."""

OPTIONS_OF_SETTINGS = {
    "nodes": "nodes",
    "ntasks": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "gpus-per-task": "gpu_isolation",
    "cpus-per-task": "cpus_per_task",
    "mem": "mem_gb",
    "time": "timeout_minutes",
    "signal": "warning_seconds",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "container-image": "container",
    "container-mounts": "container_mounts",
}
"""Options of sbatch that settings of :class:`Resources` stand for."""

OPTIONS_OF_LAUNCH = (
    *("array", "dependency", "kill-on-invalid-dep", "requeue", "no-requeue"),
    *("job-name", "output", "error", "open-mode", "export", "export-file", "wait", "parsable", "wrap"),
)
"""Options of sbatch on which chaining, watching and resuming jobs rests."""


class Resources(Section):
    """What one job of a stage asks for."""

    nodes: PositiveInt = 1
    """Machines."""

    tasks_per_node: PositiveInt = 1
    """Processes a machine; for fine-tuning usually one a GPU."""

    gpus_per_node: NonNegativeInt = 0
    """GPUs a machine."""

    gpu_isolation: bool = False
    """Slurm shows each process one GPU of its own (``--gpus-per-task=1``) instead of all of that machine's."""

    cpus_per_task: PositiveInt | None = None
    """CPU cores a process. Left out: the machine's cores divided by its processes (local), 1 (Slurm)."""

    mem_gb: PositiveFloat | None = None
    """Memory a machine."""

    timeout_minutes: PositiveInt = 24 * 60
    """Wall time after which the job is stopped."""

    warning_seconds: PositiveInt = 120
    """How long before its time is up a Slurm job is told to save and come back."""

    partition: str | None = None
    """Slurm partition."""

    account: str | None = None
    """Slurm account."""

    qos: str | None = None
    """Slurm quality of service."""

    constraint: str | None = None
    """Slurm node features."""

    setup: tuple[str, ...] = ()
    """Shell lines that run in the job before Python."""

    environment: dict[str, str | int] = Field(default_factory=dict)
    """Variables of the job's processes. Secrets do not belong here: jobs inherit those of whoever submits."""

    container: str | None = None
    """Image that Python runs in: a ``.sqsh`` file or ``registry#image`` for pyxis, a ``.sif`` file for apptainer."""

    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What starts the container: pyxis' options of ``srun``, or ``apptainer exec``."""

    container_mounts: tuple[str, ...] = ()
    """Folders that the container sees, as ``/path`` or ``/outside:/inside``. The run directory is always one."""

    container_python: str = "python3"
    """Python inside the container."""

    max_parallel: PositiveInt = 64
    """Jobs of an array that run at the same time."""

    extra: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further ``sbatch`` options, by their long names; ``true`` for one without a value (``exclusive: true``)."""

    @property
    def num_tasks(self) -> int:
        """Processes of the whole job: the world size."""
        return self.nodes * self.tasks_per_node

    @field_validator("environment")
    @classmethod
    def _variables_without_secrets(cls, environment: dict[str, str | int]) -> dict[str, str | int]:
        for name in environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of a variable")
            if SECRET.search(name):
                raise ValueError(
                    f"{name} looks like a secret, and the run directory holds its configuration in plain text: "
                    f"leave it out and `export {name}=...` before `wiseft run`, jobs inherit it"
                )
        return environment

    @field_validator("extra")
    @classmethod
    def _options_without_a_setting(cls, extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name in extra:
            option = name.replace("_", "-")
            if option in OPTIONS_OF_SETTINGS:
                raise ValueError(f"{name} has a setting of its own: use {OPTIONS_OF_SETTINGS[option]}")
            if option in OPTIONS_OF_LAUNCH or not re.fullmatch(r"[a-z][a-z0-9-]*", option):
                raise ValueError(f"{name} cannot be set here: jobs are chained, watched and resumed by it")
        return extra

    @model_validator(mode="after")
    def _warning_comes_before_the_end(self) -> Self:
        if self.warning_seconds >= 60 * self.timeout_minutes:
            raise ValueError(
                f"warning_seconds is {self.warning_seconds}, and the job has {self.timeout_minutes} minutes: "
                "give it more time (timeout_minutes) or a later warning"
            )
        return self

    @model_validator(mode="after")
    def _a_gpu_for_each_process(self) -> Self:
        if self.gpu_isolation and self.tasks_per_node != self.gpus_per_node:
            raise ValueError(
                f"gpu_isolation shows each process one GPU of its own, but tasks_per_node is {self.tasks_per_node} and "
                f"gpus_per_node is {self.gpus_per_node}: set both to the same number, or gpu_isolation=false"
            )
        return self


class PreflightConfig(Section):
    """What every node must show before fine-tuning starts on it."""

    enabled: bool = True
    """Look at all."""

    min_free_disk_gb: NonNegativeFloat = 1.0
    """Free space of the run directory, of the data cache and of the temporary folder."""

    min_free_gpu_memory: float = Field(default=0.8, ge=0, le=1)
    """The share of a GPU's memory that must be free."""

    max_clock_difference_seconds: PositiveFloat = 30.0
    """Between any node and the first."""

    min_gigabytes_per_second: PositiveFloat | None = None
    """Between neighbouring nodes. Left out: a node far below the others is a warning."""


class LaunchConfig(Section):
    """Where the stages' processes live."""

    executor: Literal["local", "slurm"] = "local"
    """``local``: submitit's processes on this machine. ``slurm``: jobs chained by dependencies."""

    site: str | None = None
    """A site profile: the name of a file in ``configs/sites``, or a path. What it says counts less than this file;
    it is looked up when the run is started, and ``RUN/config.yaml`` holds what came of it."""

    all: Resources | None = None
    """What the stages have in common: the defaults of each. Empty once it is read: the stages hold what came of it."""

    snapshot: bool = True
    """Slurm jobs run a copy of the code as it is when they are submitted."""

    max_restarts_without_progress: NonNegativeInt = 5
    """A Slurm job that was requeued so often and has committed nothing new in between ends."""

    visible_seconds: PositiveFloat = 60.0
    """How long a shared file system may take to show a node what another one has written."""

    preflight: PreflightConfig = PreflightConfig()
    """Checks of every node."""

    finetune: Resources = Resources()
    """Resources of the fine-tuning job."""

    merge: Resources = Resources()
    """Resources of the merge job."""

    evaluate: Resources = Resources()
    """Resources of each evaluation job; its processes share the job's images, without a process group."""

    report: Resources = Resources()
    """Resources of the report job."""
