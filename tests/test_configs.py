"""The configurations that come with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from wiseft_dist.config import batch_arithmetic, load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_its_batch_divides(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WISEFT_TEST_DATA", "/data")
    monkeypatch.setenv("WISEFT_SHARDS", "s3://bucket/wds")
    config = load_config(path)
    micro_batch_size, accumulation_steps = batch_arithmetic(config, config.launch.finetune.num_tasks)
    samples = micro_batch_size * accumulation_steps * config.launch.finetune.num_tasks
    assert samples == config.finetune.global_batch_size
