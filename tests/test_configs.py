"""The configurations that come with the project."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import CLASSNAMES

from wiseft_dist.config import RunConfig, load_config
from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary
from wiseft_dist.evaluate.catalog.entries import describe_dataset, find_entry
from wiseft_dist.launch.preview import preview

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
NUM_SAMPLES = 200
"""At least one for each lane."""


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A shipped configuration, with small shards in all the places that it names."""
    monkeypatch.setenv("WISEFT_TEST_DATA", str(tmp_path))
    monkeypatch.setenv("WISEFT_SHARDS", str(tmp_path))
    config = load_config(request.param, [f"output={tmp_path / 'run'}"])
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    (reference,) = config.data.reference
    for name, folder in ((reference, config.data.train), *config.data.evaluated.items()):
        classnames = describe_dataset(name, config.data.datasets.get(name)).classnames or CLASSNAMES
        samples = (EncodedSample(picture.getvalue(), "png", i % len(classnames)) for i in range(NUM_SAMPLES))
        write_split(samples, Path(folder), samples_per_shard=NUM_SAMPLES)
        write_vocabulary(Path(folder), classnames=classnames, templates=["a {c}"])
    return config


def test_every_shipped_configuration_can_be_planned_and_its_batch_divides(config: RunConfig, tmp_path: Path) -> None:
    plan = preview(config)
    samples = plan["micro_batch_size"] * plan["accumulation_steps"] * plan["world_size"]
    assert samples == plan["global_batch_size"] == config.finetune.global_batch_size
    stages = dict.fromkeys(job["name"].partition("/")[0] for job in plan["jobs"])
    assert list(stages) == ["finetune", "merge", "evaluate", "report"]
    assert {name for job in plan["jobs"] for name in job.get("images", ())} == {*config.data.evaluated, "id_val"}
    assert not (tmp_path / "run").exists()


def test_every_worker_of_a_shipped_configuration_has_a_lane(config: RunConfig) -> None:
    assert config.data.workers <= config.data.lanes // config.launch.finetune.num_tasks


def test_the_test_sets_of_a_shipped_configuration_are_in_the_catalog(config: RunConfig) -> None:
    known = [find_entry(name) for name in config.data.evaluated]
    assert all(known) or "cartoon" in config.data.evaluated  # PACS there is a part of PACS
