"""What recipes learn from a sample, what they train and how they score; their gradients have a file of their own."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_finetune import CLASSNAMES, MODEL, write_shards
from tiny_zero_shot import TEMPLATES, write_tiny_zero_shot

from wiseft_dist.commits import committing
from wiseft_dist.config import AugmentConfig, FinetuneConfig, ModelConfig
from wiseft_dist.data.batch import Batch, Target, class_label
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.stream import TrainStream, sample_order
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.transforms import Preprocess, training_transform
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.finetune.recipes.flyp import rebuilt_head
from wiseft_dist.finetune.recipes.lp_ft import head_phase
from wiseft_dist.models.classifier import read_classifier, read_clip, read_head, write_zero_shot
from wiseft_dist.models.clip import create_clip, read_config, tokenizer_of

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 2, 0, 1, 0])


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_zero_shot(tmp_path_factory.mktemp("theta_0") / "zero_shot")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return index_shards(str(write_shards(tmp_path_factory.mktemp("data") / "shards")), target=LABEL_FIELDS)


def images() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def train_stream(manifest: Manifest, target: Target, *, seed: int = 1) -> TrainStream:
    order = sample_order(manifest, seed=seed, lanes=4, block_samples=3)
    transform = training_transform(Preprocess(16, (0.5,) * 3, (0.5,) * 3), AugmentConfig(crop_scale=(0.5, 1.0)))
    return TrainStream(manifest, order, transform, target, 8)


def batches(stream: TrainStream, *, world_size: int = 1, workers: int = 0) -> list[Batch]:
    """Two epochs, as all ranks together see them."""
    taken = []
    for rank in range(world_size):
        share = stream.batches(first_step=0, rank=rank, world_size=world_size, num_workers=workers)
        taken += list(islice(share, 10))
    return taken


def tokens_by_position(taken: list[Batch]) -> dict[int, tuple[int, ...]]:
    return {
        position: tuple(tokens)
        for batch in taken
        for position, tokens in zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)
    }


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (2, 0), (4, 1)])
def test_the_template_of_a_flyp_sample_is_settled_by_seed_and_position(
    zero_shot: Path, manifest: Manifest, world_size: int, workers: int
) -> None:
    target = make_recipe(FinetuneConfig(recipe="flyp")).target(zero_shot)
    expected = tokens_by_position(batches(train_stream(manifest, target)))
    found = batches(train_stream(manifest, target), world_size=world_size, workers=workers)
    assert tokens_by_position(found) == expected
    assert tokens_by_position(batches(train_stream(manifest, target, seed=2))) != expected


def test_a_flyp_sample_is_its_class_in_any_of_the_templates(zero_shot: Path, manifest: Manifest) -> None:
    target = make_recipe(FinetuneConfig(recipe="flyp")).target(zero_shot)
    tokenizer = tokenizer_of(read_config(zero_shot))
    prompts = {name: [t.replace("{c}", name) for t in TEMPLATES] for name in CLASSNAMES}
    tokens = {name: set(map(tuple, tokenizer(texts).tolist())) for name, texts in prompts.items()}
    seen: dict[str, set[tuple[int, ...]]] = {name: set() for name in CLASSNAMES}
    for batch in batches(train_stream(manifest, target)):
        assert batch.targets.dtype == torch.int64
        for key, row in zip(batch.keys, batch.targets.tolist(), strict=True):
            seen[CLASSNAMES[int(key[1:]) % 3]].add(tuple(row))
    assert seen == tokens


def test_a_target_that_draws_leaves_the_pictures_as_they_are(zero_shot: Path, manifest: Manifest) -> None:
    target = make_recipe(FinetuneConfig(recipe="flyp")).target(zero_shot)
    pairs = zip(batches(train_stream(manifest, target)), batches(train_stream(manifest, class_label)), strict=True)
    assert all(torch.equal(drawn.images, plain.images) for drawn, plain in pairs)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("end_to_end", ("visual.", "head.")),
        ("l2_sp", ("visual.", "head.")),
        ("lp_ft", ("visual.", "head.")),
        ("linear_head", ("head.",)),
    ],
)
def test_a_recipe_with_a_head_trains_it_under_the_names_of_the_classifier(
    zero_shot: Path, name: str, trained: tuple[str, ...]
) -> None:
    recipe = make_recipe(FinetuneConfig(recipe=name), head=zero_shot)
    module, whole = recipe.module(zero_shot), read_classifier(zero_shot)
    assert recipe.trains_head and recipe.needs_head and not recipe.compares_within_batch
    assert recipe.inputs == ("features" if name == "linear_head" else "images")
    wanted = {key: value for key, value in whole.state_dict().items() if key.startswith(trained)}
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(("name", "needs_head"), [("flyp", True), ("contrastive", False)])
def test_a_contrastive_module_is_all_of_open_clip_with_a_scale_that_can_be_sharded(
    zero_shot: Path, name: str, needs_head: bool
) -> None:
    recipe, clip = make_recipe(FinetuneConfig(recipe=name)), read_clip(zero_shot).model
    assert not recipe.trains_head and recipe.compares_within_batch and recipe.needs_head is needs_head
    module = recipe.module(zero_shot)
    assert module.state_dict().keys() == clip.state_dict().keys()
    assert module.logit_scale.shape == (1,) and module.logit_scale.requires_grad
    assert module.logit_scale.item() == clip.logit_scale.item()


@pytest.mark.parametrize("name", ["flyp", "contrastive"])
def test_a_model_made_for_the_sigmoid_loss_is_refused(tmp_path: Path, name: str) -> None:
    architecture = tmp_path / "sigmoid.json"
    architecture.write_text(json.dumps(MODEL | {"init_logit_bias": -10}))
    with committing(tmp_path / "zero_shot") as folder:
        write_zero_shot(folder, create_clip(ModelConfig(architecture=str(architecture))), None, None)
    with pytest.raises(UserError, match=f"SigLIP's sigmoid loss, finetune.recipe={name} is"):
        make_recipe(FinetuneConfig(recipe=name)).module(tmp_path / "zero_shot")


@torch.no_grad()
def test_a_classifier_is_scored_by_top_1_and_the_cross_entropy_without_smoothing(zero_shot: Path) -> None:
    recipe, module = make_recipe(FinetuneConfig(label_smoothing=0.3)), read_classifier(zero_shot)
    correct, losses = recipe.scorer(module, zero_shot, device=CPU)(images(), LABELS)
    chances = module(images()).double().softmax(dim=1)
    assert correct.item() == sum(int(chances[i].argmax()) == int(label) for i, label in enumerate(LABELS))
    assert losses.item() == pytest.approx(-sum(chances[i, label].log().item() for i, label in enumerate(LABELS)))


@torch.no_grad()
def test_flyp_is_scored_with_the_head_that_its_text_tower_makes_now(zero_shot: Path) -> None:
    recipe = make_recipe(FinetuneConfig(recipe="flyp"))
    module = recipe.module(zero_shot)
    for name, parameter in module.named_parameters():
        if not name.startswith("visual."):
            parameter.mul_(1.2)
    head = rebuilt_head(zero_shot, module.state_dict(), device=CPU)
    assert not torch.allclose(head.weight, read_head(zero_shot).weight, rtol=0.1)

    classifier = read_classifier(zero_shot)
    classifier.head = head
    expected = make_recipe(FinetuneConfig()).scorer(classifier, zero_shot, device=CPU)(images(), LABELS)
    found = recipe.scorer(module, zero_shot, device=CPU)(images(), LABELS)
    assert found[0].item() == expected[0].item()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)


def test_the_head_rebuilt_from_the_zero_shot_weights_is_the_zero_shot_head(zero_shot: Path) -> None:
    weights = make_recipe(FinetuneConfig(recipe="flyp")).module(zero_shot).state_dict()
    assert weights["logit_scale"].shape == (1,)
    head = rebuilt_head(zero_shot, weights, device=CPU)
    assert torch.equal(head.weight, read_head(zero_shot).weight)
    assert torch.equal(head.bias, torch.zeros(3))


def test_an_image_is_right_if_no_other_text_of_its_batch_is_nearer() -> None:
    rows = torch.eye(4)
    pictures, texts = rows[[0, 1, 0, 3]], rows[[0, 1, 3, 1]]  # the last two are wrong; text 1 comes twice

    def forward(images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return images, tokens, torch.tensor([10.0])

    score = make_recipe(FinetuneConfig(recipe="contrastive")).scorer(forward, Path(), device=CPU)
    correct, losses = score(pictures, texts)
    assert correct.item() == 2
    logits = (10.0 * pictures @ texts.T).double()
    chances = [logits.softmax(dim=1).diagonal(), logits.softmax(dim=0).diagonal()]
    assert losses.item() == pytest.approx(-sum(chance.log().sum().item() for chance in chances) / 2)


def test_the_head_phase_of_lp_ft_is_a_linear_head_with_settings_of_its_own() -> None:
    config = FinetuneConfig.model_validate(
        {
            "recipe": "lp_ft",
            "micro_batch_size": 4,
            "activation_checkpointing": True,
            "ema": {},
            "label_smoothing": 0.1,
            "head": {"epochs": 3, "global_batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.5}},
        }
    )
    phase = head_phase(config)
    assert FinetuneConfig.model_validate(phase.model_dump()) == phase
    assert (phase.recipe, phase.epochs, phase.global_batch_size) == ("linear_head", 3, 64)
    assert phase.optimizer == config.head.optimizer and phase.schedule == config.head.schedule
    assert (phase.micro_batch_size, phase.ema, phase.activation_checkpointing) == (None, None, False)
    assert phase.label_smoothing == 0.1
