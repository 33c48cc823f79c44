"""A site profile gives every run of a cluster its defaults, and is not needed once a run has been started."""

from __future__ import annotations

from pathlib import Path

import pytest

from wiseft_dist.config import RunConfig, dump_config, load_config
from wiseft_dist.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
READY = ("apptainer", "cpu_devcluster", "no_isolation", "one_gpu_a_task", "pyxis")

RUN = "output: runs/x\nmodel: {architecture: ViT-B-16}\ndata: {train: /shards}\n"
SITE = """
launch:
  executor: slurm
  all: {partition: site-all, account: site-all, qos: site-all, constraint: site-all, mem_gb: 1,
        environment: {A: site-all, B: site-all, C: site-all}}
  finetune: {account: site-stage, qos: site-stage, constraint: site-stage, mem_gb: 2, gpus_per_node: 4,
             tasks_per_node: 4, environment: {B: site-stage}}
"""
FILE = (
    RUN
    + """
launch:
  site: lab
  all: {qos: file-all, constraint: file-all, mem_gb: 3}
  finetune: {constraint: file-stage, mem_gb: 4, environment: {C: null}}
"""
)


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with the profile `lab` beside it."""
    monkeypatch.delenv("WISEFT_SITES", raising=False)
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "lab.yaml").write_text(SITE)
    (tmp_path / "run.yaml").write_text(FILE)
    return tmp_path / "run.yaml"


def test_the_site_counts_less_than_the_file_and_all_less_than_a_stage(run_file: Path) -> None:
    launch = load_config(run_file).launch
    assert launch.executor == "slurm"
    tuned = launch.finetune
    assert (tuned.partition, tuned.account, tuned.qos, tuned.constraint, tuned.mem_gb) == (
        *("site-all", "site-stage", "file-all", "file-stage"),
        4.0,
    )
    assert (launch.merge.account, launch.merge.qos, launch.merge.mem_gb) == ("site-all", "file-all", 3.0)


def test_mappings_are_joined_and_null_takes_an_entry_out(run_file: Path) -> None:
    launch = load_config(run_file).launch
    assert launch.finetune.environment == {"A": "site-all", "B": "site-stage"}
    assert launch.report.environment == {"A": "site-all", "B": "site-all", "C": "site-all"}


def test_the_command_line_counts_more_than_any_file_also_when_it_speaks_of_all_stages(run_file: Path) -> None:
    launch = load_config(
        run_file, ["launch.finetune.mem_gb=7", "launch.all.mem_gb=6", "launch.all.constraint=x"]
    ).launch
    assert (launch.finetune.mem_gb, launch.finetune.constraint) == (7.0, "x")
    assert (launch.evaluate.mem_gb, launch.evaluate.constraint) == (6.0, "x")


def test_all_works_without_a_site(run_file: Path) -> None:
    launch = load_config(run_file, ["launch.site=null", "launch.all.partition=debug"]).launch
    assert launch.executor == "local"
    assert {getattr(launch, stage).partition for stage in ("finetune", "merge", "evaluate", "report")} == {"debug"}


def test_only_the_stages_that_ask_for_gpus_get_them(run_file: Path) -> None:
    launch = load_config(run_file, ["launch.all.gpu_isolation=true"]).launch
    assert (launch.finetune.gpus_per_node, launch.finetune.gpu_isolation) == (4, True)
    for stage in (launch.merge, launch.evaluate, launch.report):
        assert (stage.gpus_per_node, stage.gpu_isolation) == (0, False)


@pytest.mark.parametrize("setting", ["nodes", "tasks_per_node", "gpus_per_node"])
def test_the_shape_of_a_job_is_not_said_for_all_stages(run_file: Path, setting: str) -> None:
    with pytest.raises(UserError, match=f"launch.all.{setting} .*set launch.finetune.{setting}"):
        load_config(run_file, [f"launch.all.{setting}=2"])


def test_a_run_directory_does_not_need_the_profile_again(run_file: Path, tmp_path: Path) -> None:
    config = load_config(run_file)
    (run_file.parent / "sites" / "lab.yaml").unlink()
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert (config.launch.site, config.launch.all) == (None, None)
    again = load_config(tmp_path / "config.yaml", ["launch.all.partition=other"])
    assert again.launch.report.partition == "other"


def test_profiles_are_looked_up_beside_the_file_then_in_named_folders_then_in_the_checkout(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    for name in ("lab", "pyxis"):
        (tmp_path / "shared" / f"{name}.yaml").write_text("launch: {all: {partition: shared}}")
    monkeypatch.setenv("WISEFT_SITES", str(tmp_path / "shared"))
    assert load_config(run_file).launch.report.partition == "site-all"
    assert load_config(run_file, ["launch.site=pyxis"]).launch.report.partition == "shared"
    assert load_config(run_file, ["launch.site=cpu_devcluster"]).launch.report.timeout_minutes == 60
    path = f"launch.site={tmp_path / 'shared' / 'lab.yaml'}"
    assert load_config(run_file, [path]).launch.report.partition == "shared"


def test_an_unknown_profile_lists_those_that_there_are(run_file: Path) -> None:
    with pytest.raises(UserError, match=rf"'lob'.*lab \(in {run_file.parent}/sites\).*{', '.join(READY)} \(in "):
        load_config(run_file, ["launch.site=lob"])
    with pytest.raises(UserError, match=r"/nowhere/x.yaml is not there"):
        load_config(run_file, ["launch.site=/nowhere/x.yaml"])


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("launch: {all: {partitin: x}}", r"launch.all.partitin is not a setting. Did you mean launch.all.partition\?"),
        ("launch: {finetune: {nodes: 0}}", "launch.finetune.nodes is 0"),
        ("launch: {all: {environment: {HF_TOKEN: x}}}", "HF_TOKEN looks like a secret"),
        ("launch: {executor: pbs}", "launch.executor is 'pbs'"),
        ("launch: {site: other}", "does not start from another"),
        ("launch: {all: {nodes: 2}}", "launch.all.nodes"),
        ("data: {train: x}", "launch alone, and this one has data"),
        ("launch: {all: {partition: '${oc.env:NO_SUCH_NAME}'}}", "NO_SUCH_NAME, which is not set"),
        ("launch: 3", "launch is 3: it is a section"),
        ("launch: [", "not readable as YAML"),
    ],
)
def test_a_mistake_in_a_profile_names_the_profile(run_file: Path, profile: str, said: str) -> None:
    site = run_file.parent / "sites" / "lab.yaml"
    site.write_text(profile)
    with pytest.raises(UserError, match=rf"^{site}: .*{said}"):
        load_config(run_file)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("launch.all.partitin=x", "launch.all.partitin is not a setting"),
        ("launch.finetune.environment={AWS_SECRET_ACCESS_KEY: x}", "AWS_SECRET_ACCESS_KEY looks like a secret"),
        ("launch.merge.environment={no-name: x}", "'no-name' is no name of a variable"),
        ("launch.merge.warning_seconds=90000", "warning_seconds is 90000, and the job has 1440 minutes"),
        ("launch.finetune.extra={cpus_per_task: 2}", "cpus_per_task has a setting of its own: use cpus_per_task"),
        ("launch.finetune.extra={time: 2}", "time has a setting of its own: use timeout_minutes"),
        ("launch.finetune.extra={no-requeue: true}", "no-requeue cannot be set here"),
        ("launch.evaluate={gpu_isolation: true, gpus_per_node: 2}", "tasks_per_node is 1 and gpus_per_node is 2"),
    ],
)
def test_a_mistake_in_the_settings_of_jobs_is_a_sentence(run_file: Path, setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(run_file, [setting])


def test_setup_lines_are_the_shells_and_only_the_configurations_own_variables_are_filled_in(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/opt")
    site = run_file.parent / "sites" / "lab.yaml"
    site.write_text(
        "launch:\n  all:\n    setup:\n"
        "      - export PATH=${oc.env:PLACE}/bin:${PATH}\n      - echo ${SLURM_ARRAY_TASK_ID:-0}\n"
    )
    config = load_config(run_file, ["launch.merge.setup=['echo ${A%%.*}']", "launch.report={setup: ['echo ${B}']}"])
    assert config.launch.finetune.setup == ("export PATH=/opt/bin:${PATH}", "echo ${SLURM_ARRAY_TASK_ID:-0}")
    assert (config.launch.merge.setup, config.launch.report.setup) == (("echo ${A%%.*}",), ("echo ${B}",))
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_names_that_only_remind_of_secrets_are_let_through(run_file: Path) -> None:
    setting = "launch.all.environment={TOKENIZERS_PARALLELISM: 'false', OMP_NUM_THREADS: 4}"
    assert load_config(run_file, [setting]).launch.report.environment["OMP_NUM_THREADS"] == 4


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("config", ["pacs.yaml", "imagenet_vit_b16.yaml"])
def test_the_ready_profiles_fit_the_ready_configurations(
    name: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WISEFT_SHARDS", "/shards")
    monkeypatch.setenv("WISEFT_TEST_DATA", "/data")
    resolved = load_config(CONFIGS / config, [f"launch.site={name}"])
    assert isinstance(resolved, RunConfig)
    assert resolved.launch.executor == "slurm"
    isolated = name == "one_gpu_a_task" and config == "imagenet_vit_b16.yaml"
    assert (resolved.launch.finetune.gpu_isolation, resolved.launch.merge.gpu_isolation) == (isolated, False)


def test_every_ready_profile_is_known_by_its_name() -> None:
    assert tuple(sorted(file.stem for file in (CONFIGS / "sites").glob("*.yaml"))) == READY
