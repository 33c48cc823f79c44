"""What a stage's resources mean to Slurm: the options of sbatch and srun, the script's shell lines, the container."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wiseft_dist.config import Resources

REQUEUE_FILE = "WISEFT_REQUEUE_FILE"
"""The variable that says where a job in a container leaves word that it wants to be requeued."""
WORDS_OF_SUBMITIT = ("setup", "teardown", "srun_args", "signal_delay_s", "array_parallelism", "stderr_to_stdout")
"""Parameters of its executor that are no options of sbatch."""


def slurm_parameters(
    name: str,
    resources: Resources,
    *,
    dependency: str | None = None,
    code: Path | None = None,
    run_folders: Sequence[Path] = (),
) -> dict[str, Any]:
    """What submitit's Slurm executor is told in ``update_parameters``.

    Args:
        name: What squeue shows.
        resources: What the job asks for.
        dependency: Which jobs it waits for, as ``afterok:1:2`` or ``aftercorr:3``; if they fail, Slurm drops it.
        code: What goes to the front of PYTHONPATH. Left out: the installed package runs.
        run_folders: Folders that a container must see.
    """
    parameters = {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task or 1,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem": f"{round(resources.mem_gb * 1024)}M" if resources.mem_gb else None,
        "time": resources.timeout_minutes,
        "signal_delay_s": resources.warning_seconds,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "setup": list(_shell_lines(resources, code, run_folders)) or None,
        "teardown": list(_requeue_lines(resources, run_folders)) or None,
        "array_parallelism": resources.max_parallel,
        "stderr_to_stdout": True,
        "srun_args": [*_srun_options(resources), *_pyxis_options(resources, code, run_folders)],
        "additional_parameters": _further_options(resources, dependency),
    }
    return {name: value for name, value in parameters.items() if value is not None}


def sbatch_options(resources: Resources) -> list[str]:
    """What a job asks for, in words for sbatch itself."""
    parameters = slurm_parameters("wiseft", resources)
    options = {name: value for name, value in parameters.items() if name not in WORDS_OF_SUBMITIT}
    options |= options.pop("additional_parameters")
    flags = ((name.replace("_", "-"), value) for name, value in options.items())
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags]


def job_python(resources: Resources, *, code: Path | None = None, run_folders: Sequence[Path] = ()) -> str | None:
    """The shell's words for Python in the job, for submitit's ``python``; nothing for the one that runs now."""
    if resources.container is None:
        return None
    python = shlex.quote(resources.container_python)
    if resources.container_runtime == "pyxis":
        return python
    command = ["apptainer", "exec"]
    if resources.gpus_per_node or "gres" in resources.extra:
        command.append("--nv")
    command += ["--bind", ",".join(_mounts(resources, code, run_folders)), resources.container]
    return f"{shlex.join(command)} {python}"


def _shell_lines(resources: Resources, code: Path | None, run_folders: Sequence[Path]) -> Iterator[str]:
    """The batch script before ``srun``: the variables, what the user runs, and the code in front of what that left."""
    if resources.container is not None and run_folders:
        yield from _exported(REQUEUE_FILE, f"{shlex.quote(str(run_folders[0]))}/.requeue-$SLURM_JOB_ID", resources)
    for name, value in resources.environment.items():
        yield from _exported(name, shlex.quote(str(value)), resources)
    yield from resources.setup
    if code is not None:
        yield from _exported("PYTHONPATH", f"{shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}", resources)
        # Else `python -m` prefers a package in the folder that the job was submitted from.
        yield from _exported("PYTHONSAFEPATH", "1", resources)


def _requeue_lines(resources: Resources, run_folders: Sequence[Path]) -> Iterator[str]:
    """The batch script after ``srun``: requeues a job whose image has no `scontrol`, if it asks for that."""
    if resources.container is None or not run_folders:
        return
    yield f'if [ -e "${REQUEUE_FILE}" ]; then'
    yield f'    rm -f "${REQUEUE_FILE}"'
    # Of one task of each array, SLURM_JOB_ID is the whole array's, too.
    yield '    job="$SLURM_JOB_ID"'
    yield '    [ -z "$SLURM_ARRAY_JOB_ID" ] || job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
    # Not one that is being cancelled: it does not count as running any more.
    yield '    if [ "$(squeue --noheader --format=%T --jobs="$job")" = RUNNING ]; then'
    yield '        scontrol requeue "$job" && sleep 60'
    yield "    fi"
    yield "fi"


def _exported(name: str, value: str, resources: Resources) -> Iterator[str]:
    yield f"export {name}={value}"
    if resources.container is not None and resources.container_runtime == "apptainer":
        yield f'export APPTAINERENV_{name}="${name}"'  # goes before what the image sets


def _srun_options(resources: Resources) -> Iterator[str]:
    # Since Slurm 22.05 srun does not take the cores a task from sbatch; a rank that dies should end the others.
    yield f"--cpus-per-task={resources.cpus_per_task or 1}"
    yield "--kill-on-bad-exit=1"
    if resources.gpu_isolation:
        yield "--gpus-per-task=1"
    # Otherwise each process sees all GPUs that the job has on its node. `--gpu-bind=none` is not a way to say so: Slurm
    # 22.05 then leaves CUDA_VISIBLE_DEVICES unset, and without cgroups that shows the GPUs of other jobs.


def _pyxis_options(resources: Resources, code: Path | None, run_folders: Sequence[Path]) -> Iterator[str]:
    if resources.container is None or resources.container_runtime != "pyxis":
        return
    yield f"--container-image={resources.container}"
    yield f"--container-mounts={','.join(_mounts(resources, code, run_folders))}"
    yield "--no-container-mount-home"  # packages under ~/.local would hide the image's
    code_names = ("PYTHONPATH", "PYTHONSAFEPATH") if code is not None else ()
    requeue_names = (REQUEUE_FILE,) if run_folders else ()
    if names := [*resources.environment, *code_names, *requeue_names]:
        yield f"--container-env={','.join(names)}"  # goes before what the image sets


def _mounts(resources: Resources, code: Path | None, run_folders: Sequence[Path]) -> list[str]:
    """``/outside:/inside`` for every folder that the container sees, each once."""
    own = [str(_mountable(folder)) for folder in (*run_folders, *([code] if code else []))]
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in (*resources.container_mounts, *own)]
    return list(dict.fromkeys(mounts))


def _mountable(folder: Path) -> Path:
    """The folder, or the nearest above it that a list of mounts can name: a sweep's runs have commas in their names."""
    return next(each for each in (folder, *folder.parents) if not set(",:") & set(str(each)))


def _further_options(resources: Resources, dependency: str | None) -> dict[str, Any]:
    """Options that submitit has no words for; ``True`` is a flag without a value."""
    options: dict[str, Any] = {}
    for name, value in resources.extra.items():
        if value is not False:
            options[name.replace("_", "-")] = True if value == "" else value
    options["requeue"] = True  # where the site's JobRequeue is 0, a preempted job would end
    if dependency is not None:
        options |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    return options
