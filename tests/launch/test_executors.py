"""What a stage's resources become: options of sbatch and srun, lines of a shell script, a container's command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import submitit.slurm.slurm

from wiseft_dist.config import Resources, RunConfig
from wiseft_dist.errors import RunError
from wiseft_dist.launch.container_checks import unseen_in_containers
from wiseft_dist.launch.executors import _clean_environment, submitting
from wiseft_dist.launch.sbatch import job_python, sbatch_options, slurm_parameters

PLAIN = Resources()
GPUS = Resources(tasks_per_node=4, gpus_per_node=4, cpus_per_task=8)


def script(resources: Resources, **options: object) -> list[str]:
    """The lines of the batch script that submitit makes."""
    parameters = slurm_parameters("run-finetune", resources, **options)  # type: ignore[arg-type]
    text: str = submitit.slurm.slurm._make_sbatch_string(command="PYTHON", folder="/run/jobs", **parameters)
    return text.splitlines()


def environment_of_the_job(lines: list[str], **inherited: str) -> dict[str, str]:
    """What a program in place of `srun` sees of its environment, in a real shell."""
    words = [sys.executable, "-c", "'import json, os; print(json.dumps(dict(os.environ)))'"]
    shell = [line if not line.startswith("srun") else " ".join(words) for line in lines]
    done = subprocess.run(["bash", "-c", "\n".join(shell)], capture_output=True, text=True, env=inherited, check=True)
    seen: dict[str, str] = json.loads(done.stdout)
    return seen


def test_every_setting_becomes_its_option() -> None:
    resources = Resources(
        nodes=2, tasks_per_node=4, gpus_per_node=4, cpus_per_task=8, mem_gb=1.5, timeout_minutes=30, warning_seconds=90,
        partition="gpu", account="me", qos="long", constraint="a100|h100", extra={"exclusive": True, "nice": 10},
    )  # fmt: skip
    options = {line.removeprefix("#SBATCH --") for line in script(resources) if line.startswith("#SBATCH")}
    assert options == {
        *("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8", "mem=1536M", "time=30"),
        *("signal=USR2@90", "partition=gpu", "account=me", "qos=long", "constraint='a100|h100'", "exclusive"),
        *("nice=10", "requeue", "job-name=run-finetune", "wckey=submitit", "open-mode=append"),
        "output=/run/jobs/%j_0_log.out",
    }


def test_sbatch_is_asked_beforehand_for_what_it_is_told_later() -> None:
    resources = GPUS.model_copy(
        update={"mem_gb": 1.5, "constraint": "a100|h100", "extra": {"exclusive": "", "nice": 10}}
    )
    told = {shlex.split(line)[1] for line in script(resources, dependency="afterok:1") if line.startswith("#SBATCH")}
    asked = set(sbatch_options(resources))
    assert asked - told == {"--job-name=wiseft"}
    assert {option.partition("=")[0] for option in told - asked} == {
        *("--job-name", "--output", "--open-mode", "--wckey", "--signal"),
        *("--dependency", "--kill-on-invalid-dep"),
    }


def test_a_job_waits_for_others_and_is_dropped_where_they_fail() -> None:
    lines = script(PLAIN, dependency="afterok:12:34")
    assert "#SBATCH --dependency=afterok:12:34" in lines and "#SBATCH --kill-on-invalid-dep=yes" in lines


def test_processes_see_one_gpu_each_or_all_of_the_node() -> None:
    def srun(resources: Resources) -> list[str]:
        return next(line for line in script(resources) if line.startswith("srun")).split()

    isolated = GPUS.model_copy(update={"gpu_isolation": True})
    assert "--gpus-per-task=1" in srun(isolated)
    assert not [word for word in srun(GPUS) if "gpu" in word]
    assert not [word for word in srun(PLAIN) if "gpu" in word]
    assert "--cpus-per-task=8" in srun(GPUS) and "--kill-on-bad-exit=1" in srun(GPUS)


def test_values_reach_the_job_as_they_are_whatever_they_hold() -> None:
    values = {"QUOTED": 'it\'s "$HOME" `id`', "LINES": "a\nb", "NUMBER": 4, "EMPTY": ""}
    seen = environment_of_the_job(script(Resources(environment=values)), HOME="/nowhere")
    assert {name: seen[name] for name in values} == {
        "QUOTED": 'it\'s "$HOME" `id`',
        "LINES": "a\nb",
        "NUMBER": "4",
        "EMPTY": "",
    }


def test_setup_lines_see_the_variables_and_the_code_is_in_front_of_what_they_put_there(tmp_path: Path) -> None:
    resources = Resources(environment={"PLACE": "/module"}, setup=("export PYTHONPATH=$PLACE/lib",))
    code = tmp_path / "with a space"
    seen = environment_of_the_job(script(resources, code=code), PATH="/usr/bin:/bin")
    assert seen["PYTHONPATH"] == f"{code}:/module/lib"
    assert seen["PYTHONSAFEPATH"] == "1"
    assert environment_of_the_job(script(PLAIN, code=code))["PYTHONPATH"] == str(code)
    assert "PYTHONPATH" not in environment_of_the_job(script(PLAIN))


def test_pyxis_gets_the_image_the_mounts_and_the_names_of_variables() -> None:
    resources = Resources(
        container="/images/a b.sqsh", container_mounts=("/data", "/fast:/cache"), environment={"NCCL_DEBUG": "INFO"}
    )
    places = {"code": Path("/run/jobs/code/1"), "run_folders": [Path("/run")]}
    [srun] = [line for line in script(resources, **places) if line.startswith("srun")]
    assert "'--container-image=/images/a b.sqsh'" in srun
    assert "--container-mounts=/data:/data,/fast:/cache,/run:/run,/run/jobs/code/1:/run/jobs/code/1 " in srun
    assert "--no-container-mount-home" in srun
    assert "--container-env=NCCL_DEBUG,PYTHONPATH,PYTHONSAFEPATH" in srun
    assert job_python(resources, **places) == "python3"  # type: ignore[arg-type]


def test_apptainer_runs_python_in_the_image_and_with_gpus_only_where_there_are_some() -> None:
    resources = Resources(
        container="/images/x.sif",
        container_runtime="apptainer",
        container_mounts=("/data",),
        container_python="/opt/py/bin/python",
        environment={"NCCL_DEBUG": "INFO"},
    )
    folders = [Path("/my run")]
    command = job_python(resources, run_folders=folders)
    assert command == "apptainer exec --bind '/data:/data,/my run:/my run' /images/x.sif /opt/py/bin/python"
    with_gpus = job_python(resources.model_copy(update={"gpus_per_node": 1}), run_folders=folders)
    assert with_gpus is not None and with_gpus.startswith("apptainer exec --nv --bind ")
    assert job_python(PLAIN, run_folders=folders) is None
    seen = environment_of_the_job(script(resources, run_folders=folders))
    assert (seen["NCCL_DEBUG"], seen["APPTAINERENV_NCCL_DEBUG"]) == ("INFO", "INFO")


@pytest.mark.parametrize(("value", "option"), [(True, "exclusive"), ("", "exclusive"), ("user", "exclusive=user")])
def test_an_option_without_a_value_is_a_flag(value: str | bool, option: str) -> None:
    assert f"#SBATCH --{option}" in script(Resources(extra={"exclusive": value}))
    assert not [line for line in script(Resources(extra={"exclusive": False})) if "exclusive" in line]


def test_places_that_a_container_does_not_see_are_named() -> None:
    data = {"train": "/data/train", "reference": {"photo": "s3://bucket/photo"}, "shifts": {"sketch": "/fast/sketch"}}
    stage = {"container": "x.sqsh", "container_mounts": ["/outside:/fast:ro"]}
    tree = {"output": "/runs/x", "model": {"architecture": "ViT-B-16"}, "data": data}
    config = RunConfig.model_validate(tree | {"launch": {"executor": "slurm", "evaluate": stage}})
    [said] = unseen_in_containers(config)
    assert said.startswith("data.train: /data/train is not mounted in the container of launch.evaluate: add its folder")
    seen = config.launch.evaluate.model_copy(update={"container_mounts": ("/data", "/fast")})
    launch = config.launch.model_copy(update={"evaluate": seen})
    assert unseen_in_containers(config.model_copy(update={"launch": launch})) == []


def test_models_that_the_merge_reads_are_looked_for_in_its_container() -> None:
    merge = {"method": "uniform_soup", "models": ["/seen/one", "/elsewhere/two", "s3://bucket/three"]}
    stage = {"container": "x.sqsh", "container_mounts": ["/seen"]}
    tree = {"output": "/runs/x", "model": {"architecture": "ViT-B-16"}, "data": {"train": "/t"}, "merge": merge}
    config = RunConfig.model_validate(tree | {"launch": {"executor": "slurm", "merge": stage}})
    [said] = unseen_in_containers(config)
    assert said.startswith("merge.models: /elsewhere/two is not mounted in the container of launch.merge")


def test_variables_of_a_job_here_do_not_stay_with_whoever_submits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SLURM_GPU_BIND", "closest")
    with _clean_environment(OMP_NUM_THREADS="1", NCCL_DEBUG="INFO"):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["NCCL_DEBUG"]) == ("1", "INFO")
        assert "SLURM_GPU_BIND" not in os.environ
    assert (os.environ["OMP_NUM_THREADS"], os.environ["SLURM_GPU_BIND"]) == ("7", "closest")
    assert "NCCL_DEBUG" not in os.environ


def test_an_option_that_sbatch_does_not_know_is_named() -> None:
    words = "sbatch: unrecognized option '--x=3'\nTry \"sbatch --help\" for more information\n"
    said = "Slurm refused the report job: sbatch: unrecognized option '--x=3'$"
    with pytest.raises(RunError, match=said), submitting("report"):
        raise submitit.core.utils.FailedJobError(words)


def test_a_run_whose_name_a_list_of_mounts_cannot_hold_is_seen_with_the_folder_around_it() -> None:
    run = Path("/runs/sweep/lr=1e-05,epochs=5")
    resources = Resources(container="x.sqsh")
    [srun] = [
        line for line in script(resources, code=run / "jobs/code/1", run_folders=[run]) if line.startswith("srun")
    ]
    assert "--container-mounts=/runs/sweep:/runs/sweep " in srun
