"""docs/evaluation.md says what the code does: settings with their defaults, columns, keys, metrics, commands, fits."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
import yaml

from wiseft_dist.cli import app
from wiseft_dist.config import DatasetSpec, EvaluateConfig, load_config
from wiseft_dist.config.dataset import Metric
from wiseft_dist.evaluate.catalog.entries import catalog, describe_dataset, read_dataset_file
from wiseft_dist.evaluate.catalog.published import zero_shot_tolerance
from wiseft_dist.evaluate.cells.files import COLUMNS as CELL_COLUMNS
from wiseft_dist.evaluate.class_map import load_class_map
from wiseft_dist.evaluate.statistics.robustness import published_fits
from wiseft_dist.evaluate.statistics.selection import choose_alphas
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.rows import COLUMNS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "evaluation.md").read_text()
SETTINGS = re.findall(r"^\| `(evaluate\.\w+)` \| `([^`]*)` \|", TEXT, re.MULTILINE)
"""Settings and defaults of the table."""
DATASET_SETTINGS = re.findall(r"^\| `data\.datasets\.NAME\.(\w+)` \| `([^`]*)` \|", TEXT, re.MULTILINE)
COMMANDS = re.findall(r"^(?:torchrun \S+ \S+ \d+ -m wiseft_dist|wiseft) (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
YAML_EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SENTENCES = re.findall(r"^\| `(.*?)` \| ", TEXT.split("| What it says |")[1], re.MULTILINE)
LEAST = "output: runs/mine\nmodel: {architecture: ViT-B-32}\ndata: {train: shards}\n"


def table_of(heading: str) -> str:
    """The table under a heading row."""
    return TEXT.split(f"| {heading} |")[1].split("\n\n")[0]


def fields_within(kind: Any) -> Iterator[str]:
    """The names of every field of a dataclass, at any depth."""
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield field.name
            yield from fields_within(types[field.name])
    for argument in get_args(kind):
        yield from fields_within(argument)


def test_every_setting_of_evaluate_has_one_row_and_there_is_no_other() -> None:
    assert sorted(key for key, _ in SETTINGS) == sorted(f"evaluate.{name}" for name in EvaluateConfig.model_fields)


@pytest.mark.parametrize(("key", "default"), SETTINGS, ids=[key for key, _ in SETTINGS])
def test_a_setting_that_gets_its_documented_default_changes_nothing(tmp_path: Path, key: str, default: str) -> None:
    file = tmp_path / "least.yaml"
    file.write_text(LEAST)
    assert load_config(file, [f"{key}={default}"]).evaluate == EvaluateConfig()


def test_every_setting_of_a_dataset_has_one_row_and_there_is_no_other() -> None:
    assert sorted(key for key, _ in DATASET_SETTINGS) == sorted(DatasetSpec.model_fields)


def test_the_documented_defaults_of_a_dataset_are_its_defaults() -> None:
    given = {key: yaml.safe_load(default) for key, default in DATASET_SETTINGS}
    assert DatasetSpec.model_validate(given) == DatasetSpec()


def test_every_metric_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|", table_of("Metric | Definition"), re.MULTILINE) == list(get_args(Metric))


def test_every_column_of_results_is_explained_in_its_order() -> None:
    rows = re.findall(r"^\| (`.*?`) \| ", table_of("Column | Unit"), re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(COLUMNS)


def test_every_key_of_statistics_is_explained_and_there_is_no_other_choice() -> None:
    explained = set(re.findall(r"`([\w.\[\]]+)`", TEXT.split("### statistics.json")[1]))
    explained |= {part for name in explained for part in re.split(r"[.\[\]]+", name)}
    assert set(fields_within(Statistics)) <= explained
    names = {choice.name for choice in choose_alphas({0.5: 1.0}, {0.5: 1.0}, {0.5: 1.0})}
    assert names == set(re.findall(r"^\| `(\w+)` \|", table_of("Choice | Which alpha"), re.MULTILINE))


def test_every_column_of_a_cell_is_explained() -> None:
    explained = re.findall(r"`(\w+)`", table_of("Column | What it is"))
    assert set(explained) == {"key", "position", "label", *CELL_COLUMNS.values()}


def test_the_fits_of_the_table_are_those_of_the_catalog() -> None:
    rows = re.findall(
        r"^\| `(\w+)`.*? \| .*? \| ([\d.-]+) \| ([\d.-]+) \| ([\d.]+) \| (\d+) \|",
        table_of("Fit | Reference axis"),
        re.MULTILINE,
    )
    shown = [(name, *map(float, line), int(num_models)) for name, *line, num_models in rows]
    assert shown == [
        (name, piece.slope, piece.intercept, piece.r2, piece.num_models)
        for name in dict.fromkeys(name for name, *_ in rows)
        for piece in published_fits()[name].pieces
    ]
    assert {name for name, *_ in rows} == set(published_fits())


def test_the_tolerance_of_the_check_is_the_documented_one() -> None:
    assert f"{zero_shot_tolerance():g} pp are named" in TEXT


def test_the_test_sets_that_are_named_are_in_the_catalog() -> None:
    examples = set(re.findall(r"^ +(imagenet\w*|objectnet):", "\n".join(YAML_EXAMPLES), re.MULTILINE))
    assert {"imagenet_v2", "objectnet"} <= examples <= set(catalog())
    assert describe_dataset("ImageNet-V2", None).spec.catalog == "imagenet_v2"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_only_options_that_exist(command: str) -> None:
    name, *arguments = shlex.split(command)
    known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known.make_context(name, arguments)


def test_every_option_is_named() -> None:
    options = {
        option
        for parameter in typer.main.get_command(app).commands["evaluate"].params  # type: ignore[attr-defined]
        for option in parameter.opts
        if option.startswith("--")
    }
    assert options - {"--help"} == set(re.findall(r"`(--[a-z][\w-]+)`", table_of("Option | Meaning")))


@pytest.mark.parametrize("example", [example for example in YAML_EXAMPLES if not example.startswith("name:")])
def test_an_example_of_a_run_is_a_valid_one(tmp_path: Path, example: str) -> None:
    tree = yaml.safe_load(LEAST) | yaml.safe_load(example)
    tree["data"].setdefault("train", "shards")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "run.yaml")
    for name, given in config.data.datasets.items():
        describe_dataset(name, given)


def test_the_example_of_a_dataset_file_is_a_valid_one(tmp_path: Path) -> None:
    (example,) = (example for example in YAML_EXAMPLES if example.startswith("name:"))
    assert len(example.splitlines()) == 10
    (tmp_path / "yard.yaml").write_text(example)
    (tmp_path / "yard").mkdir()
    (tmp_path / "yard" / "classnames.txt").write_text("hen\nfox\n")
    (tmp_path / "imagenet_to_yard.json").write_text(json.dumps({"num_source": 1000, "groups": [[8], [277, 278]]}))
    name, shards, spec = read_dataset_file(tmp_path / "yard.yaml")
    assert (name, shards) == ("yard", str(tmp_path / "yard" / "test"))
    dataset = describe_dataset(name, spec)
    assert dataset.classnames == ("hen", "fox")
    assert dataset.class_map is not None and dataset.class_map.groups == ((8,), (277, 278))


def test_the_example_of_a_class_map_is_a_valid_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "map.json").write_text(example)
    found = load_class_map(str(tmp_path / "map.json"), "class_map")
    assert (found.num_source, found.groups, found.source) == (1000, ((409, 530), (414,), ()), "imagenet")


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_of_the_table_is_one_that_the_program_says(sentence: str) -> None:
    source = " ".join(path.read_text() for path in sorted((ROOT / "wiseft_dist").rglob("*.py")))
    joined = re.sub(r'"\s*f?"', "", source)  # sentences go over several lines there
    for part in sentence.split("..."):
        assert part.strip(" :,") in joined
