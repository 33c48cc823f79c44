"""docs/cluster.md says what the code does: settings with their defaults, options, profiles, commands, outcomes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from wiseft_dist.cli import app
from wiseft_dist.config import LaunchConfig, PreflightConfig, Resources, RunConfig, load_config
from wiseft_dist.launch.outcomes import REASONS, Outcome

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "cluster.md").read_text()
ROWS = re.findall(r"^\| `(launch\.[\w.]+)` \| `([^`]*)` \|", TEXT, re.MULTILINE)
"""Settings and defaults of the table."""
STAGES = ("finetune", "merge", "evaluate", "report")
COMMANDS = re.findall(r"^wiseft (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
LEAST = "output: runs/mine\nmodel: {architecture: ViT-B-32}\ndata: {train: shards}\n"


def load(tmp_path: Path, text: str = "", overrides: tuple[str, ...] = ()) -> RunConfig:
    (tmp_path / "least.yaml").write_text(LEAST + text)
    return load_config(tmp_path / "least.yaml", overrides)


def test_every_setting_of_launch_has_one_row_and_there_is_no_other() -> None:
    settings = [f"launch.{name}" for name in LaunchConfig.model_fields if name not in ("preflight", *STAGES)]
    settings += [f"launch.preflight.{name}" for name in PreflightConfig.model_fields]
    settings += [f"launch.STAGE.{name}" for name in Resources.model_fields]
    assert sorted(key for key, _ in ROWS) == sorted(settings)


@pytest.mark.parametrize(("key", "default"), ROWS, ids=[key for key, _ in ROWS])
def test_a_setting_that_gets_its_documented_default_changes_nothing(tmp_path: Path, key: str, default: str) -> None:
    override = f"{key.replace('STAGE', 'finetune')}={default}"
    assert load(tmp_path, overrides=(override,)).launch == LaunchConfig()


@pytest.mark.parametrize("example", re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
def test_an_example_is_a_valid_run(tmp_path: Path, example: str) -> None:
    launch = load(tmp_path, example).launch
    assert (launch.executor, launch.finetune.num_tasks, launch.merge.account) == ("slurm", 32, "my_project")


def test_settings_in_the_text_exist(tmp_path: Path) -> None:
    tree = load(tmp_path).model_dump()
    tree["launch"]["all"] = tree["launch"]["STAGE"] = Resources().model_dump()
    for key in set(re.findall(r"`((?:launch|finetune|data|wandb)\.[\w.]+)(?:[:=][^`]*)?`", TEXT)):
        place = tree
        for part in key.split("."):
            assert part in place, key
            place = place[part]


@pytest.mark.parametrize("setting", re.findall(r"`extra: (\{.*?\})`|`launch\.\w+\.extra: (\{.*?\})`", TEXT))
def test_further_options_are_accepted(setting: tuple[str, str]) -> None:
    Resources(extra=yaml.safe_load("".join(setting)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_only_options_that_exist(command: str) -> None:
    name, *arguments = shlex.split(command)
    known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known.make_context(name, arguments)


@pytest.mark.parametrize("name", ["doctor", "run", "plan", "status"])
def test_every_option_is_named(name: str) -> None:
    parameters = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    options = {option for parameter in parameters for option in parameter.opts if option.startswith("--")}
    assert options - {"--help"} <= set(re.findall(r"(--[a-z][\w-]+)", TEXT))


def test_the_profiles_are_those_that_there_are() -> None:
    table = TEXT.split("| Profile | For a cluster |")[1].split("\n\n")[0]
    profiles = {file.stem for file in (ROOT / "configs" / "sites").glob("*.yaml")}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == profiles


def test_every_outcome_is_named() -> None:
    assert {outcome.value for outcome in Outcome} <= set(re.findall(r"`(\w+)`", TEXT))


def test_the_reasons_to_wait_that_are_explained_are_slurms() -> None:
    named = {"Resources", "Priority", "ReqNodeNotAvail", "PartitionTimeLimit", "PartitionNodeLimit", "BeginTime"}
    assert named <= set(REASONS)
    assert all(word in TEXT for word in named)


def test_the_options_of_devcluster_are_named() -> None:
    options = re.findall(r'add_argument\("(--[a-z-]+)"', (ROOT / "slurm" / "devcluster").read_text())
    assert set(options) - {"--cpus", "--dir"} <= set(re.findall(r"--[a-z-]+", TEXT))
