"""The whole stage in real processes: however the work is shared, it is the training that plain PyTorch does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetune import CLASSNAMES, NUM_SAMPLES, launch, metrics, tiny_config, trained, write_shards

from wiseft_dist.commits import read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.data.batch import Batch
from wiseft_dist.data.stage import TRAIN, load_manifest
from wiseft_dist.data.stream import TrainStream, sample_order
from wiseft_dist.data.transforms import normalize, training_transform
from wiseft_dist.finetune.mixing import make_mixing
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.finetune.schedule import learning_rate, total_steps
from wiseft_dist.finetune.stage import finetune
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def global_batches(config: RunConfig, run: Run, preprocess: Any, target: Any) -> Iterator[Batch]:
    manifest, data = load_manifest(run, TRAIN), config.data
    order = sample_order(manifest, seed=config.seed, lanes=data.lanes, block_samples=data.block_samples)
    transform = training_transform(preprocess, data.augment)
    stream = TrainStream(manifest, order, transform, target, config.finetune.global_batch_size)
    return stream.batches(first_step=0, rank=0, world_size=1, num_workers=0)


def plain_training(config: RunConfig, run: Run) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the same training in a few lines of PyTorch: one process, whole batches."""
    recipe, preprocess = make_recipe(config.finetune), preprocess_of(read_config(run.zero_shot))
    module, settings = recipe.module(run.zero_shot), config.finetune.optimizer
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=settings.weight_decay)
    batches = global_batches(config, run, preprocess, recipe.target(run.zero_shot))
    losses, norms, steps = [], [], total_steps(config, NUM_SAMPLES)
    mixing = make_mixing(
        config.data.augment,
        num_classes=len(CLASSNAMES),
        label_smoothing=config.finetune.label_smoothing,
        seed=config.seed,
    )
    for step in range(steps):
        batch = next(batches)
        rate = learning_rate(step, peak=settings.lr, total_steps=steps, schedule=config.finetune.schedule)
        optimizer.param_groups[0]["lr"] = rate
        images, targets = normalize(batch.images, preprocess, torch.float32), batch.targets
        if mixing is not None:
            images, targets = mixing(images, targets, step=step, rank=0, micro=0)
        loss = recipe.loss(module, images, targets)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, {"zero_stage": 1}),
        (2, {"zero_stage": 2, "micro_batch_size": 1}),
        (2, {"zero_stage": 3, "micro_batch_size": 2}),
        (2, {"zero_stage": 2, "recipe": "contrastive"}),
        (2, {"zero_stage": 0, "recipe": "flyp", "activation_checkpointing": True}),
        (1, {"zero_stage": 2, "compile": True, "schedule": {"name": "linear", "warmup_steps": 2}}),
        (1, {"label_smoothing": 0.1, "augment": {"mixup": 0.8, "cutmix": 1.0, "horizontal_flip": 0.5}}),
    ],
    ids=lambda value: value if isinstance(value, int) else "-".join(f"{key}={value[key]}" for key in value),
)
def test_training_is_that_of_plain_pytorch(
    tmp_path: Path, shards: Path, processes: int, settings: dict[str, Any]
) -> None:
    config = tiny_config(tmp_path / "run", shards, processes=processes, **settings)
    run = trained(config)
    losses, norms = plain_training(config, run)
    assert list(metrics(run, "loss").values()) == pytest.approx(losses, rel=2e-3)
    assert list(metrics(run, "gradient_norm").values()) == pytest.approx(norms, rel=2e-2)
    assert max(norms) > 1.0 and max(losses) - min(losses) > 0.1  # clipping acts and the weights move

    checkpoint = run.finished_checkpoint()
    assert checkpoint.name == "step_10" and read_commit(checkpoint)["world_size"] == processes
    _check_names(read_commit(checkpoint)["trained"], has_texts=config.finetune.recipe in ("contrastive", "flyp"))
    _check_that_nothing_happens_again(config, run)


def _check_names(names: list[str], *, has_texts: bool) -> None:
    """The text tower and the logit scale are in the checkpoint only if they were trained."""
    outside = {name for name in names if not name.startswith(("visual.", "head."))}
    if has_texts:
        assert "logit_scale" in outside and not any(name.startswith("head.") for name in names)
    else:
        assert not outside and {"head.weight", "head.bias", "visual.proj"} < set(names)


def _check_that_nothing_happens_again(config: RunConfig, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    finetune(config, run)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_bf16_trains_with_fp32_masters(tmp_path: Path, shards: Path) -> None:
    config = tiny_config(tmp_path / "run", shards, precision="bf16", zero_stage=1, micro_batch_size=4)
    run = trained(config)
    losses, _ = plain_training(config, run)
    assert list(metrics(run, "loss").values()) == pytest.approx(losses, rel=0.1)
    file = next(run.finished_checkpoint().glob("*optim_states.pt"))
    shard = torch.load(file, weights_only=False)["optimizer_state_dict"]
    assert shard["single_partition_of_fp32_groups"][0].dtype == torch.float32
    assert shard["zero_stage"] == 2  # what stage 1 becomes with accumulation; it would add up in bf16


def test_a_mistake_that_only_rank_0_can_see_is_answered_alike_by_every_rank(tmp_path: Path, shards: Path) -> None:
    architecture = tmp_path / "broken.json"
    architecture.write_text(json.dumps({"embed_dim": 16}))
    run = open_run(tiny_config(tmp_path / "run", shards, processes=2, architecture=str(architecture)))
    for code, error in launch(run, 2):
        assert code == 2
        assert f"wiseft: model.architecture: {architecture} does not describe" in error and "Traceback" not in error
    assert {event["kind"] for event in read_events(run) if event["event"] == "failed"} == {"UserError"}
