"""Held-out validation on real ranks with sharded parameters, against the same samples scored one by one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_validation import TIMES, Case, held_out_pictures, normalized, run_cases
from test_features import damage_picture
from tiny_finetune import write_shards
from tiny_zero_shot import write_tiny_zero_shot
from torch.nn import functional

from wiseft_dist.config import ValidationConfig
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.finetune.validation import ValidationTimes
from wiseft_dist.models.classifier import read_classifier
from wiseft_dist.models.clip import preprocess_of, read_config


def make_folder(folder: Path, *, held_out: float = 0.3) -> Path:
    """theta_0, shards and their manifest."""
    folder.mkdir()
    write_tiny_zero_shot(folder / "zero_shot")
    shards = write_shards(folder / "shards")
    index_shards(str(shards), target=LABEL_FIELDS, held_out_fraction=held_out).save(folder / "train.json")
    return folder


def damage_a_held_out_picture(folder: Path) -> None:
    manifest = Manifest.load(folder / "train.json")
    shard = next(index for index, count in enumerate(manifest.held_out_counts) if count)
    damage_picture(Path(manifest.shards[shard].url.removeprefix("file://")), int(manifest.held_out(shard)[0]))


def one_by_one(folder: Path) -> dict[str, float]:
    """What theta_0 says of the held-out samples, in plain PyTorch."""
    preprocess = preprocess_of(read_config(folder / "zero_shot"))
    module = read_classifier(folder / "zero_shot").eval()
    correct, losses, num = 0, 0.0, 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for batch in held_out_pictures(Case(folder), preprocess).batches(1, num_workers=0):
        with torch.no_grad():
            logits = module(normalized(batch.images, preprocess))
        correct += int(logits.argmax(dim=1).item() == batch.targets.item())
        losses += functional.cross_entropy(logits, batch.targets).item()
        num += 1
    torch.set_num_threads(threads)
    return {"id_val/top1": correct / num, "id_val/loss": losses / num, "id_val/num_samples": num}


def numbers(found: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name.startswith("id_val/")}


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.matrix)])
def test_ranks_score_every_held_out_sample_once(tmp_path: Path, world_size: int) -> None:
    many, few = make_folder(tmp_path / "many"), make_folder(tmp_path / "few", held_out=0.03)
    expected, of_few = one_by_one(many), one_by_one(few)
    assert (expected["id_val/num_samples"], of_few["id_val/num_samples"]) == (12, 1)
    assert 0 < expected["id_val/top1"] < 1
    singly, *others, features, alone = run_cases(
        [
            Case(many, zero_stage=1, batch_size=1),
            Case(many, batch_size=1),
            Case(many, batch_size=5),
            Case(many, batch_size=2, workers=2),
            Case(many, batch_size=5, recipe="linear_head", zero_stage=1),
            Case(few),
        ],
        tmp_path / "found",
        world_size=world_size,
    )
    assert [numbers(found) for found in singly] == [expected] * world_size
    for case, wanted in [*((case, expected) for case in (*others, features)), (alone, of_few)]:
        assert all(numbers(found) == numbers(case[0]) for found in case)
        assert numbers(case[0]) == pytest.approx(wanted, rel=1e-6)
    assert all(found["is_training"] and not found["children"] for case in (singly, *others) for found in case)


def test_damaged_samples_are_left_out_or_stop_every_rank(tmp_path: Path) -> None:
    folder, none = make_folder(tmp_path / "damaged"), make_folder(tmp_path / "none", held_out=0.0)
    damage_a_held_out_picture(folder)
    allowed, single, refused, nothing = run_cases(
        [
            Case(folder, max_bad=1, workers=1),
            Case(folder, max_bad=1, batch_size=1),
            Case(folder, workers=2),
            Case(none),
        ],
        tmp_path / "found",
        world_size=2,
    )
    assert [found["id_val/num_samples"] for found in allowed + single] == [11] * 4
    assert numbers(allowed[0]) == numbers(allowed[1]) == pytest.approx(numbers(single[0]), rel=1e-6)
    for found in refused:
        assert "does not decode" in found["error"] and "1 skipped so far, none may be" in found["error"]
        assert found["children"] == 0 and found["is_training"]
    assert [found["is_due"] for found in allowed + nothing] == [[4, 8]] * 2 + [[]] * 2


def due(num_training: int = 32, total_steps: int = 16, **config: Any) -> list[int]:
    times = ValidationTimes(ValidationConfig(**config), TIMES.global_batch_size, num_training, total_steps)
    return [step for step in range(1, total_steps + 1) if times.is_due(step)]


def test_validation_is_due_each_so_many_epochs_and_at_the_end() -> None:
    assert due(every_epochs=1) == [4, 8, 12, 16]
    assert due(every_epochs=0.5) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert due(every_epochs=1.5) == [6, 12, 16]
    assert due(every_epochs=None) == [16]
    assert due(every_epochs=100) == [16]


def test_validation_is_due_each_so_many_steps_and_at_the_end() -> None:
    assert due(every_steps=5) == [5, 10, 15, 16]
    assert due(every_steps=8, every_epochs=None) == [8, 16]


def test_an_epoch_that_ends_inside_a_step_is_validated_after_that_step() -> None:
    assert due(num_training=33, every_epochs=1) == [5, 9, 13, 16]
    assert due(num_training=3, total_steps=4, every_epochs=1) == [1, 2, 3, 4]


@pytest.mark.parametrize("every_epochs", ["0.1", "0.3", "0.7", "1.1"])
def test_a_fraction_of_an_epoch_is_not_late_by_rounding(every_epochs: str) -> None:
    interval = Fraction(every_epochs) * 80
    ends = [multiple * interval for multiple in range(1, 1 + int(400 * 8 / interval))]
    wanted = sorted({-(-end // 8) for end in ends} | {400})
    assert due(num_training=80, total_steps=400, every_epochs=float(every_epochs)) == wanted
