"""A global batch is shared by the processes, or the answer names the nearest numbers that can."""

from __future__ import annotations

import re
from typing import Any

import pytest

from wiseft_dist.config import FinetuneConfig, RunConfig, batch_arithmetic
from wiseft_dist.config.batch import COMPARING_RECIPES, MIXING_RECIPES
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.finetune.recipes.lp_ft import head_phase

MIXUP = {"augment": {"mixup": 0.2}}
CUTMIX = {"augment": {"cutmix": 1.0}}


def config(batch: int, micro: int | None = None, *, lanes: int = 16, recipe: str = "end_to_end", **others: Any) -> Any:
    data = {"train": "shards", "lanes": lanes, "augment": others.pop("augment", {})}
    finetune = {"recipe": recipe, "global_batch_size": batch, "micro_batch_size": micro, **others}
    return {"output": "run", "model": {"architecture": "ViT-B-16"}, "data": data, "finetune": finetune}


def shared(settings: Any, world_size: int) -> tuple[int, int]:
    return batch_arithmetic(RunConfig.model_validate(settings), world_size)


def refusal(settings: Any, world_size: int) -> str:
    with pytest.raises(UserError) as caught:
        shared(settings, world_size)
    return str(caught.value)


@pytest.mark.parametrize(
    ("world_size", "settings", "expected"),
    [
        (1, config(512), (512, 1)),
        (4, config(512), (128, 1)),
        (4, config(512, 32), (32, 4)),
        (16, config(16, 1), (1, 1)),
        (3, config(12, 2, lanes=48), (2, 2)),
        (2, config(12, **MIXUP), (6, 1)),
        (2, config(4, 1, recipe="contrastive"), (1, 2)),
        (4, config(512, 64, recipe="lp_ft", head={"global_batch_size": 4}), (64, 2)),
    ],
)
def test_the_global_batch_is_shared_by_ranks_and_accumulation(
    world_size: int, settings: Any, expected: tuple[int, int]
) -> None:
    assert shared(settings, world_size) == expected


REFUSED = [
    (4, config(510), ["finetune.global_batch_size=508 or 512", "a world size of 2"]),
    (6, config(40, lanes=48), ["finetune.global_batch_size=36 or 42", "a world size of 4 or 8"]),
    (2, config(100, 16), ["finetune.global_batch_size=96 or 128", "finetune.micro_batch_size=10 or 25"]),
    (8, config(5), ["finetune.global_batch_size=8", "a world size of 1"]),
    (4, config(128, 64), ["finetune.global_batch_size=256", "finetune.micro_batch_size=32", "a world size of 2"]),
    (4, config(192, 64), ["finetune.global_batch_size=256", "finetune.micro_batch_size=48", "a world size of 1"]),
    (4, config(3, 7), ["finetune.global_batch_size=28"]),
    (6, config(48), ["data.lanes=12 or 18", "a world size of 4 or 8"]),
    (32, config(512), ["data.lanes=32", "a world size of 16"]),
    (2, config(6, **MIXUP), ["finetune.global_batch_size=4 or 8", "a world size of 1"]),
    (2, config(6, recipe="l2_sp", **CUTMIX), ["finetune.global_batch_size=4 or 8", "a world size of 1"]),
    (2, config(12, 3, **CUTMIX), ["finetune.micro_batch_size=2 or 6"]),
    (2, config(6, 3, **MIXUP), ["finetune.global_batch_size=4 or 8 without finetune.micro_batch_size"]),
    (1, config(1, recipe="flyp"), ["finetune.global_batch_size=2"]),
    (1, config(1, 1, recipe="flyp"), ["finetune.global_batch_size=2 without finetune.micro_batch_size"]),
    (1, config(4, 1, recipe="contrastive"), ["finetune.micro_batch_size=2", "a world size of 2"]),
    (
        4,
        config(512, recipe="lp_ft", head={"global_batch_size": 6}),
        ["finetune.head.global_batch_size=4 or 8", "a world size of 2"],
    ),
]


@pytest.mark.parametrize(("world_size", "settings", "ways"), REFUSED)
def test_what_cannot_be_shared_is_answered_with_the_nearest_numbers_that_can(
    world_size: int, settings: Any, ways: list[str]
) -> None:
    offered = refusal(settings, world_size).split(": use ")[1].rstrip(".").split(", or ")
    assert [way.removesuffix(" (launch.finetune)") for way in offered] == ways


@pytest.mark.parametrize(("world_size", "settings", "ways"), REFUSED)
def test_every_number_that_is_offered_works(world_size: int, settings: Any, ways: list[str]) -> None:
    for way in ways:
        numbers = [int(number) for number in re.findall(r"\d+", way)]
        for number in numbers:
            if way.startswith("a world size"):
                shared(settings, number)
            else:
                shared(changed(settings, way.split("=")[0], number, undivided="without" in way), world_size)


def changed(settings: Any, key: str, number: int, *, undivided: bool) -> Any:
    section, *path, name = key.split(".")
    inner = settings[section] | ({"micro_batch_size": None} if undivided else {})
    inner = inner | ({path[0]: inner[path[0]] | {name: number}} if path else {name: number})
    return settings | {section: inner}


def test_a_head_that_learns_from_features_has_no_pictures_to_pair() -> None:
    whole = RunConfig.model_validate(config(8, recipe="lp_ft", head={"global_batch_size": 6}, **MIXUP))
    assert batch_arithmetic(whole, 2) == (4, 1)
    assert batch_arithmetic(whole.model_copy(update={"finetune": head_phase(whole.finetune)}), 2) == (3, 1)


def test_the_answer_says_what_was_wrong() -> None:
    assert refusal(config(510), 4).startswith(
        "finetune.global_batch_size is 510, which is not a multiple of 4 processes"
    )
    assert "is not a multiple of 1 process x 16 samples" in refusal(config(100, 16), 1)
    assert refusal(config(48), 6).startswith("data.lanes is 16, which 6 processes cannot share evenly")
    assert "blend pictures in pairs, but each forward pass has 3 of them" in refusal(config(6, **MIXUP), 2)
    assert "with each other, but over all processes there is one" in refusal(config(1, recipe="flyp"), 1)


def test_the_recipes_that_compare_and_those_that_mix_are_those_that_say_so() -> None:
    names = ["end_to_end", "linear_head", "lp_ft", "flyp", "l2_sp", "contrastive"]
    recipes = {name: make_recipe(FinetuneConfig(recipe=name)) for name in names}
    assert [name for name in names if recipes[name].compares_within_batch] == list(COMPARING_RECIPES)
    mixing = [name for name in names if recipes[name].trains_head and recipes[name].inputs == "images"]
    assert mixing == list(MIXING_RECIPES)
