"""docs/finetuning.md says what the code does: every setting with its default, every command a valid one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from wiseft_dist.config import EmaConfig, FinetuneConfig, batch_arithmetic, load_config
from wiseft_dist.finetune.meter import Meter
from wiseft_dist.run import FREE

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "finetuning.md").read_text()
ROWS = re.findall(r"^\| `(finetune\.[\w.]+)` \| `([^`]*)` \|", TEXT, re.MULTILINE)
"""Settings and defaults of the tables."""
COMMANDS = [
    line
    for line in re.findall(r"^(wiseft (?:run|plan) configs/.*)$", TEXT, re.MULTILINE)
    if not line.endswith("\\") and "$" not in line
]


def keys_of(section: type[BaseModel], prefix: str = "finetune.") -> list[str]:
    """Every dotted key of a section, at any depth; a section that may be left out counts itself too."""
    keys = []
    for name, field in section.model_fields.items():
        inner = EmaConfig if name == "ema" else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            keys.append(prefix + name)
            continue
        if field.default is None:
            keys.append(prefix + name)
        keys += keys_of(inner, f"{prefix}{name}.")
    return keys


def test_every_setting_of_finetune_has_one_row_and_there_is_no_other() -> None:
    assert sorted(key for key, _ in ROWS) == sorted(keys_of(FinetuneConfig))


@pytest.mark.parametrize(("key", "default"), ROWS, ids=[key for key, _ in ROWS])
def test_a_setting_that_gets_its_documented_default_changes_nothing(tmp_path: Path, key: str, default: str) -> None:
    file = tmp_path / "least.yaml"
    file.write_text("output: runs/mine\nmodel: {architecture: ViT-B-32}\ndata: {train: shards}\n")
    expected = FinetuneConfig(ema=EmaConfig()) if key.startswith("finetune.ema.") else FinetuneConfig()
    assert load_config(file, [f"{key}={default}"]).finetune == expected


def test_what_may_change_between_two_sessions_is_listed() -> None:
    section = TEXT.split("### What may change between two sessions")[1].split("\nSo may")[0]
    listed = {key.removesuffix("*") for key in re.findall(r"`(finetune\.[\w.*]+)`", section)}
    assert listed == set(FREE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_can_be_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WISEFT_SHARDS", "/data/wds")
    path, *overrides = shlex.split(command)[2:]
    config = load_config(ROOT / path, overrides)
    batch_arithmetic(config, config.launch.finetune.num_tasks)


def test_every_configuration_is_listed() -> None:
    assert set(re.findall(r"^\| `(configs/\w+\.yaml)` \|", TEXT, re.MULTILINE)) == {
        f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")
    }


def test_every_metric_is_explained() -> None:
    metrics = set(re.findall(r"``(\w+)``", Meter.read.__doc__ or ""))
    explained = TEXT.split("| Metric | Meaning |")[1].split("\n\n")[0]
    assert {"loss", "lr", "eta_seconds"} <= metrics <= set(re.findall(r"`(\w+)`", explained))
