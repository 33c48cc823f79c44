"""docs/merging.md says what the code does: every setting with its default, every command and sentence a real one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file

from benchmarks.merge_model import TAG, write_models
from wiseft_dist.cli import app
from wiseft_dist.config import MergeConfig, load_config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "merging.md").read_text()
ROWS = re.findall(r"^\| `(merge\.\w+)` \| `([^`]*)` \|", TEXT, re.MULTILINE)
"""Settings and defaults of the table."""
COMMANDS = re.findall(r"^(?:torchrun \S+ \d+ -m wiseft_dist|srun --ntasks \d+ wiseft|wiseft) merge (.*)$", TEXT, re.M)
LOCAL = [
    command.replace("global_step500", TAG)
    for command in COMMANDS
    if not re.search(r"s3://|:openai|^runs/|^--verify", command)
]
"""Those that need no store, download, run or merged model."""
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SENTENCES = re.findall(r"^\| `(.*?)` \| ", TEXT.split("| What it says |")[1], re.MULTILINE)
SHAPES = {
    "visual.conv1.weight": (3, 5),
    "visual.transformer.resblocks.0.weight": (7, 3),
    "visual.transformer.resblocks.1.weight": (2, 11),
    "visual.ln_post.bias": (9,),
    "head.weight": (4, 5),
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page's commands name, in the current folder."""
    made = write_models(tmp_path, SHAPES)
    made.finetuned.rename(tmp_path / "checkpoints")
    zero_shot = load_file(made.zero_shot)
    (tmp_path / "runs").mkdir()
    for number, name in enumerate(("finetuned.pt", "runs/a.pt", "runs/b.pt"), start=1):
        torch.save({key: value + 1e-3 * number * value.sin() for key, value in zero_shot.items()}, tmp_path / name)
    save_file({key: torch.ones_like(value) for key, value in zero_shot.items()}, tmp_path / "fisher_0.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_setting_of_merge_has_one_row_and_there_is_no_other() -> None:
    assert sorted(key for key, _ in ROWS) == sorted(f"merge.{name}" for name in MergeConfig.model_fields)


@pytest.mark.parametrize(("key", "default"), ROWS, ids=[key for key, _ in ROWS])
def test_a_setting_that_gets_its_documented_default_changes_nothing(tmp_path: Path, key: str, default: str) -> None:
    file = tmp_path / "least.yaml"
    file.write_text("output: runs/mine\nmodel: {architecture: ViT-B-32}\ndata: {train: shards}\n")
    assert load_config(file, [f"{key}={default}"]).merge == MergeConfig()


def test_every_method_is_explained() -> None:
    methods = set(get_args(MergeConfig.model_fields["method"].annotation))
    formulas, advice = (TEXT.split(f"| {title} |")[1].split("\n\n")[0] for title in ("Method", "Take"))
    for table in (formulas, advice):
        assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == methods


def test_every_option_is_named() -> None:
    options = {
        option
        for parameter in typer.main.get_command(app).commands["merge"].params  # type: ignore[attr-defined]
        for option in parameter.opts
        if option.startswith("--")
    }
    assert options - {"--help"} == {option for option in re.findall(r"--[a-z][\w-]+", TEXT) if option in options}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_only_options_that_exist(command: str) -> None:
    merge = typer.main.get_command(app).commands["merge"]  # type: ignore[attr-defined]
    merge.make_context("merge", shlex.split(command))


@pytest.mark.parametrize("command", LOCAL)
def test_a_command_on_local_files_runs(command: str, models: Path) -> None:
    app(["merge", *shlex.split(command)], standalone_mode=False)
    if "--output" in command:
        assert len(list(models.glob("*/alpha_*/COMMITTED.json"))) >= 3


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_valid_section(example: str) -> None:
    MergeConfig.model_validate(yaml.safe_load(example)["merge"])


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_of_the_table_is_one_that_the_program_says(sentence: str) -> None:
    source = " ".join(path.read_text() for path in sorted((ROOT / "wiseft_dist").rglob("*.py")))
    joined = re.sub(r'"\s*f?"', "", source)  # sentences go over several lines there
    for part in re.split(r"\.\.\.|: ", sentence):
        assert part.strip(" :,") in joined
