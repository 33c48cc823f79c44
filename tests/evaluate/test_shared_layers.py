"""Layers that no alpha changes are computed once, and no bit of any score shows it."""

from __future__ import annotations

import pytest
import torch
from made_up_images import batches, classifier, ensemble_of, images, prepare, two_models, with_head
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.sweep import shared_layers
from wiseft_dist.evaluate.sweep.shared_layers import Layers, PlainModel
from wiseft_dist.evaluate.sweep.sweep import sweep
from wiseft_dist.merge.ensemble import Ensemble

MEMBERS = [Member(0.0), Member(0.3), Member(1.0)]
BLOCK = "visual.transformer.resblocks."
FROZEN = {
    "nothing": (("visual.conv1.",), 0),
    "the patches": (("visual.ln_pre.",), 0),
    "the stem": ((f"{BLOCK}0.", f"{BLOCK}2."), 1),
    "a block": ((f"{BLOCK}1.mlp.c_fc.bias",), 2),
    "all blocks but one": ((f"{BLOCK}2.", "head."), 3),
    "all blocks": (("visual.ln_post.", "visual.proj"), 4),
    "the encoder": (("head.",), 5),
    "everything": (("nothing of this name",), 5),
}
"""What fine-tuning changed, and how many stages are shared."""
TOWERS = {
    "mean of tokens": {"pool_type": "avg"},
    "norm behind the pooling": {"final_ln_after_pool": True},
    "no norm in front": {"no_ln_pre": True},
    "attention": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 1, "pool_type": "tok"},
    "scaled layers": {"ls_init_value": 0.1},
    "dropped patches": {"patch_dropout": 0.5},
    "blocks of another kind": {"qk_norm": True, "scale_attn": True},
    "fixed positions": {"pos_embed_type": "sin_cos_2d"},
}


def logits(module: nn.Module, layers: Layers, ensemble: Ensemble, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the whole module, and of the cut one, whose shared half ran at another alpha."""
    pixels = prepare(images(5))
    with torch.inference_mode():
        ensemble.set_alpha(0.9 - alpha / 2)
        shared = layers.shared(pixels)
        ensemble.set_alpha(alpha)
        cut, features = layers.rest(shared, 5)
        assert torch.equal(features, module.features(pixels))
        return module(pixels), cut


@pytest.mark.parametrize("frozen", FROZEN)
def test_the_longest_unchanged_front_is_shared_and_no_bit_changes(frozen):
    changed, num_shared = FROZEN[frozen]
    module = classifier()
    ensemble = ensemble_of(module, changed)
    layers = Layers(ensemble)
    assert layers.num_shared == num_shared
    assert ensemble.varying == {name for name in module.state_dict() if name.startswith(changed)}
    for alpha in (0.0, 0.3, 1.0):
        whole, cut = logits(module, layers, ensemble, alpha)
        assert torch.equal(whole, cut)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("frozen", ["nothing", "a block", "all blocks"])
def test_every_vision_transformer_of_open_clip_is_cut_without_a_trace(tower, frozen):
    module = classifier(**TOWERS[tower])
    changed, num_shared = FROZEN[frozen]
    ensemble = ensemble_of(module, changed)
    layers = Layers(ensemble)
    assert layers.num_shared == num_shared
    whole, cut = logits(module, layers, ensemble, 0.3)
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, logits(module, layers, ensemble, 1.0)[0])


def test_scores_are_the_same_to_the_bit_whether_layers_are_shared_or_not():
    module = classifier()
    shared = ensemble_of(module, (f"{BLOCK}2.", "head."))
    found = sweep(shared, batches(4), MEMBERS, prepare=prepare, compare=True)
    other = classifier()
    apart = ensemble_of(other, (f"{BLOCK}2.", "head."))
    apart.varying = frozenset(other.state_dict())
    assert (Layers(shared).num_shared, Layers(apart).num_shared) == (3, 0)
    same = sweep(apart, batches(4), MEMBERS, prepare=prepare, compare=True)
    for name in ("classes", "top5", "confidences", "margins", "log_probs", "briers", "divergences"):
        assert getattr(found, name).tobytes() == getattr(same, name).tobytes(), name
    assert found.features.linear_cka() == same.features.linear_cka()


def test_shared_layers_run_once_a_batch_and_the_others_once_for_each_alpha():
    module = classifier()
    ensemble = ensemble_of(module, (f"{BLOCK}1.", "head."))
    runs = {"conv1": 0, "0": 0, "1": 0, "2": 0}

    def count(name: str) -> None:
        runs[name] += 1

    watched = {"conv1": module.visual.conv1, **dict(module.visual.transformer.resblocks.named_children())}
    for name, layer in watched.items():
        layer.register_forward_hook(lambda *_, name=name: count(name))
    sweep(ensemble, batches(4), MEMBERS, prepare=prepare)
    assert runs == {"conv1": 3, "0": 3, "1": 9, "2": 9}


@pytest.mark.parametrize("kind", ["a resnet", "a hook", "gradient checkpointing", "a tower of another kind"])
def test_towers_that_are_not_known_are_shared_whole_or_not_at_all(kind):
    if kind == "a resnet":
        module = with_head(ModifiedResNet([1, 1, 1, 1], output_dim=6, heads=2, image_size=32, width=8), 6)
    elif kind == "a tower of another kind":
        module = with_head(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), 6)
    else:
        module = classifier()
    if kind == "a hook":
        module.visual.register_forward_hook(lambda *_: None)
    if kind == "gradient checkpointing":
        module.visual.transformer.grad_checkpointing = True
    last = next(name for name in reversed(module.state_dict()) if name.startswith("visual.") and "weight" in name)
    partly = ensemble_of(module, (last,))
    assert Layers(partly).num_shared == 0
    assert Layers(ensemble_of(module, ("head.",))).num_shared == 1
    pixels = prepare(images(3, 32 if kind == "a resnet" else 8))
    layers = Layers(partly)
    partly.set_alpha(0.4)
    with torch.inference_mode():
        assert torch.equal(layers.rest(layers.shared(pixels), 3)[0], module(pixels))


def test_a_cpu_takes_a_few_images_at_a_time(monkeypatch):
    monkeypatch.setattr(shared_layers, "HOST_IMAGES_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    module = classifier()
    ensemble = ensemble_of(module, (f"{BLOCK}2.", "head."))
    sizes = []
    module.visual.conv1.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    module.head.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    found = sweep(ensemble, batches(5), [Member(0.3)], prepare=prepare)
    assert sizes == [2, 3] * 2 + [1] + [2, 3] * 2 + [1]  # one image is left alone only where there is no other
    ensemble.set_alpha(0.3)
    with torch.inference_mode():
        wanted = module(prepare(images()))
    assert found.classes[0].tolist() == wanted.argmax(-1).tolist()
    assert found.confidences[0] == pytest.approx(wanted.softmax(-1).max(-1).values.numpy(), abs=1e-5)


@pytest.mark.parametrize("num_images", [17, 33, 40])
def test_taking_a_few_images_at_a_time_changes_no_bit(monkeypatch, num_images):
    """A matrix product of one row adds up in another order than one of many."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # pieces of 16
    module = classifier(width=64, output_dim=6)
    layers, pixels = Layers(PlainModel(module, varying=("visual.",))), prepare(images(num_images))
    with torch.inference_mode():
        found, _ = layers.rest(layers.shared(pixels), num_images)
        assert torch.equal(found, module(pixels))


def test_a_hook_on_the_whole_model_is_not_passed_over():
    module = classifier()
    called = []
    module.register_forward_hook(lambda *_: called.append(1))
    sweep(PlainModel(module), batches(4), [Member(1.0)], prepare=prepare)
    assert len(called) == 3


def test_tensors_need_not_be_one_object_to_be_shared_but_equal_to_the_last_bit():
    module = classifier()
    zero_shot, finetuned = two_models(module, ("head.",))
    finetuned["visual.conv1.weight"] = zero_shot["visual.conv1.weight"].double()
    assert Layers(Ensemble(module, zero_shot, [finetuned])).num_shared == 5
    finetuned[f"{BLOCK}1.ln_1.bias"][3] = torch.nextafter(finetuned[f"{BLOCK}1.ln_1.bias"][3], torch.tensor(9.0))
    assert Layers(Ensemble(module, zero_shot, [finetuned])).num_shared == 2
    zero_shot["visual.class_embedding"][0], finetuned["visual.class_embedding"][0] = 0.0, -0.0
    assert Layers(Ensemble(module, zero_shot, [finetuned])).num_shared == 0


def test_layers_are_compiled_once_for_all_alphas_batches_and_datasets():
    """The last batch is smaller than the others: filled up, it is no new shape."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    module = classifier()
    ensemble = ensemble_of(module, (f"{BLOCK}2.", "head."))
    plain = sweep(ensemble, batches(4), MEMBERS, prepare=prepare, compare=True)
    torch._dynamo.reset()
    layers = Layers(ensemble, compile_batch_size=4, backend=counter)
    for batch_size in (4, 3, 4):
        found = sweep(ensemble, batches(batch_size), MEMBERS, prepare=prepare, compare=True, layers=layers)
        assert found.classes.tolist() == plain.classes.tolist()
        assert found.log_probs == pytest.approx(plain.log_probs, abs=1e-3)
        assert found.features.num_samples == 11
    assert counter.frame_count == 2  # the shared half and the rest


@pytest.mark.matrix
def test_compiled_layers_score_as_the_others_do():
    ensemble = ensemble_of(classifier(), (f"{BLOCK}2.", "head."))
    plain = sweep(ensemble, batches(4), MEMBERS, prepare=prepare)
    torch._dynamo.reset()
    layers = Layers(ensemble, compile_batch_size=4)
    with torch.compiler.set_stance("default"):
        found = sweep(ensemble, batches(4), MEMBERS, prepare=prepare, layers=layers)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = sweep(ensemble, batches(4), MEMBERS, prepare=prepare, layers=layers)
    assert found.classes.tolist() == again.classes.tolist() == plain.classes.tolist()
    assert found.log_probs == pytest.approx(plain.log_probs, abs=1e-3)
    assert again.log_probs.tobytes() == found.log_probs.tobytes()


def test_a_missing_compiler_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(UserError, match="needs a compiler and no-such-compiler -O2 is not there"):
        Layers(ensemble_of(classifier()), compile_batch_size=4)
