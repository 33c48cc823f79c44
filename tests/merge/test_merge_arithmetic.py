"""The numbers of an ensemble, as they stand in written files and in modules in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from real_checkpoints import same_bits
from torch import Tensor, nn

from wiseft_dist.errors import UserError
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.methods.wise import Wise, interpolate
from wiseft_dist.merge.writer import Inputs, write_ensembles
from wiseft_dist.models.files import HEAD_FILE, WEIGHTS_FILE
from wiseft_dist.weights.pairing import match
from wiseft_dist.weights.records import Weights
from wiseft_dist.weights.sources import open_weights

INTERIOR = [0.001, 0.1, 0.3, 0.5, 0.7, 0.95, 0.999]


def wide(*shape: int, seed: int) -> Tensor:
    """Numbers of both signs over many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    exponent = 4 * torch.randn(*shape, generator=generator)
    return torch.randn(*shape, generator=generator) * torch.exp(exponent)


def model(seed: int) -> dict[str, Tensor]:
    """Weights by an open_clip-like naming: every kind of tensor, and a layer that is the same for every seed."""
    generator = torch.Generator().manual_seed(seed)
    changing = {"visual.weight": wide(37, 11, seed=seed), "head.weight": wide(5, 11, seed=seed + 100)}
    return changing | {
        "visual.frozen": torch.cat([wide(50, seed=7), torch.tensor([-0.0, 0.0, 1e-40, -3e38])]),
        "logit_scale": torch.tensor(4.6 - seed),
        "visual.bias": torch.tensor([-0.0, 0.0, 1.0, *((-0.0, 2.0) if seed else (2.0, -0.0))]),
        "position_ids": torch.randint(0, 77, (1, 77), generator=generator),
        "num_batches_tracked": torch.tensor(10 + seed),
        "mask": torch.rand(9, generator=generator) > 0.5,
        "empty": torch.empty(0, 3),
    }


def saved(folder: Path, tensors: dict[str, Tensor]) -> Weights:
    """A model folder like ours: the head in a file of its own."""
    folder.mkdir(parents=True)
    for file, is_head in ((WEIGHTS_FILE, False), (HEAD_FILE, True)):
        part = {name: value for name, value in tensors.items() if name.startswith("head.") == is_head}
        if part:
            safetensors.torch.save_file(part, folder / file)
    return open_weights(folder)


def merged(
    path: Path,
    zero_shot: dict[str, Tensor],
    finetuned: dict[str, Tensor],
    alphas: list[float],
    *,
    dtype: torch.dtype = torch.float32,
    carry: tuple[str, ...] = (),
) -> dict[float, dict[str, Tensor]]:
    """Write two models and their ensembles below a path, and read the ensembles back with the safetensors library."""
    folders = {alpha: path / "out" / str(alpha) for alpha in alphas}
    with saved(path / "zero_shot", zero_shot) as first, saved(path / "finetuned", finetuned) as second:
        models = match(first, [second], carry=carry)
        write_ensembles(models, Wise(), folders, dtype=dtype, side_files=no_files)
    return {
        alpha: {
            name: value
            for file in folder.glob("*.safetensors")
            for name, value in safetensors.torch.load_file(file).items()
        }
        for alpha, folder in folders.items()
    }


def no_files(alpha: float, inputs: Inputs) -> dict[str, bytes]:
    """Nothing beside the weights."""
    return {}


def data(file: Path) -> bytes:
    """What stands behind the header of a safetensors file."""
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_merge_at_alpha_zero_is_the_zero_shot_file_byte_for_byte(tmp_path: Path):
    """But for the spaces behind the header."""
    merged(tmp_path, model(0), model(1), [0.0])
    for file in (WEIGHTS_FILE, HEAD_FILE):
        assert data(tmp_path / "out" / "0.0" / file) == data(tmp_path / "zero_shot" / file)


def test_merge_at_alpha_one_is_the_fine_tuned_file_byte_for_byte(tmp_path: Path):
    merged(tmp_path, model(0), model(1), [1.0])
    for file in (WEIGHTS_FILE, HEAD_FILE):
        assert data(tmp_path / "out" / "1.0" / file) == data(tmp_path / "finetuned" / file)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("case", ["1-fp32", "2-fp32", "3-fp32"])
def test_merge_at_alpha_one_has_the_bytes_of_the_sharded_masters(
    zero_checkpoint: Any, tmp_path: Path, world_size: int, case: str
):
    checkpoint = zero_checkpoint(world_size, case)
    live = checkpoint.live()
    zero_shot = {name: torch.ones_like(value) for name, value in live.items()}
    with saved(tmp_path / "zero_shot", zero_shot) as first, open_weights(checkpoint.tag) as second:
        folders = {1.0: tmp_path / "out"}
        write_ensembles(match(first, [second]), Wise(), folders, dtype=torch.float32, side_files=no_files)
    written = safetensors.torch.load_file(tmp_path / "out" / WEIGHTS_FILE)
    assert [name for name in live if not same_bits(written[name], live[name])] == []


def test_equal_inputs_stay_equal_to_the_bit_at_every_alpha(tmp_path: Path):
    ensembles = merged(tmp_path, model(0), model(1), [0.0, *INTERIOR, 1.0])
    for ensemble in ensembles.values():
        assert same_bits(ensemble["visual.frozen"], model(0)["visual.frozen"])
        assert same_bits(ensemble["visual.bias"][:3], model(0)["visual.bias"][:3])


@pytest.mark.parametrize("alpha", INTERIOR)
def test_an_ensemble_is_the_exact_mixture_to_the_rounding_of_fp32(tmp_path: Path, alpha: float):
    first, second = model(0)["visual.weight"], model(1)["visual.weight"]
    ensemble = merged(tmp_path, model(0), model(1), [alpha])[alpha]["visual.weight"]
    exact = (1 - alpha) * first.double() + alpha * second.double()
    scale = (1 - alpha) * first.double().abs() + alpha * second.double().abs()
    assert ((ensemble.double() - exact).abs() <= 2 * torch.finfo(torch.float32).eps * scale).all()


def test_a_mixture_written_in_bf16_is_the_fp32_one_rounded_once(tmp_path: Path):
    alphas = [0.0, *INTERIOR, 1.0]
    wanted = merged(tmp_path / "fp32", model(0), model(1), alphas)
    rounded = merged(tmp_path / "bf16", model(0), model(1), alphas, dtype=torch.bfloat16)
    for alpha in alphas:
        for name, value in wanted[alpha].items():
            expected = value.to(torch.bfloat16) if value.is_floating_point() else value
            assert same_bits(rounded[alpha][name], expected), (alpha, name)


def test_bf16_inputs_are_mixed_in_fp32():
    first, second = (wide(999, seed=seed).to(torch.bfloat16) for seed in (0, 1))
    out, wanted = torch.empty(999, dtype=torch.bfloat16), torch.empty(999)
    interpolate(first, second, 0.3, out=out)
    interpolate(first.float(), second.float(), 0.3, out=wanted)
    assert same_bits(out, wanted.to(torch.bfloat16))


@pytest.mark.parametrize("alpha", INTERIOR)
def test_integers_and_masks_between_the_ends_are_the_zero_shot_models(tmp_path: Path, alpha: float):
    ensemble = merged(tmp_path, model(0), model(1), [alpha])[alpha]
    for name in ("position_ids", "num_batches_tracked", "mask"):
        assert same_bits(ensemble[name], model(0)[name])


def test_many_alphas_in_one_pass_are_what_each_is_alone(tmp_path: Path):
    together = merged(tmp_path / "together", model(0), model(1), INTERIOR)
    for alpha in INTERIOR:
        alone = merged(tmp_path / f"alone_{alpha}", model(0), model(1), [alpha])
        assert all(same_bits(together[alpha][name], value) for name, value in alone[alpha].items())


class Live(nn.Module):
    """A module with the tensors of a model."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            *path, last = name.split(".")
            owner = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            if value.is_floating_point():
                owner.register_parameter(last, nn.Parameter(torch.zeros_like(value)))
            else:
                owner.register_buffer(last, torch.zeros_like(value))


def test_an_ensemble_in_memory_is_the_written_one_bit_for_bit(tmp_path: Path):
    alphas = [0.0, *INTERIOR, 1.0]
    written = merged(tmp_path, model(0), model(1), alphas)
    module = Live(model(0))
    cpu = torch.device("cpu")
    with open_weights(tmp_path / "zero_shot") as first, open_weights(tmp_path / "finetuned") as second:
        ensemble = Ensemble(module, load_weights(first, module, device=cpu), [load_weights(second, module, device=cpu)])
    for alpha in [*alphas, *reversed(alphas)]:
        ensemble.set_alpha(alpha)
        held = module.state_dict()
        assert held.keys() == written[alpha].keys()
        assert [name for name in held if not same_bits(held[name], written[alpha][name])] == []


def test_a_bf16_module_holds_the_written_ensemble_rounded_once(tmp_path: Path):
    written = merged(tmp_path, model(0), model(1), [0.3])[0.3]
    module = Live(model(0)).to(torch.bfloat16)
    Ensemble(module, model(0), [model(1)]).set_alpha(0.3)
    for name, value in module.state_dict().items():
        assert same_bits(value, written[name].to(value.dtype)), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("role", ["zero_shot", "finetuned"])
def test_a_number_that_is_not_finite_is_refused_by_file_tensor_and_element(tmp_path: Path, value: float, role: str):
    models = {"zero_shot": model(0), "finetuned": model(1)}
    models[role]["visual.weight"].view(-1)[123] = value
    with pytest.raises(
        UserError, match=rf"{role}/{WEIGHTS_FILE}: tensor visual\.weight .*\[37, 11\].* {value} at element 123\b"
    ):
        merged(tmp_path, *models.values(), [0.5])


def test_large_finite_numbers_are_merged(tmp_path: Path):
    """Their sum is infinite, each of them is not."""
    large = {"w": torch.full((9,), 3e38)}
    assert same_bits(merged(tmp_path, large, large, [0.5])[0.5]["w"], large["w"])


def test_a_number_that_the_written_dtype_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"70000\.0 at element 1\. torch\.float16 cannot hold that"):
        merged(tmp_path, {"w": torch.ones(2)}, {"w": torch.tensor([1.0, 7e4])}, [0.5], dtype=torch.float16)


@pytest.mark.parametrize("shapes", [((), (1,)), ((1,), ())])
def test_logit_scale_may_be_a_number_in_one_model_and_one_element_in_the_other(tmp_path: Path, shapes: Any):
    first, second = ({"logit_scale": torch.full(shape, value)} for shape, value in zip(shapes, (2.0, 4.0), strict=True))
    assert same_bits(merged(tmp_path, first, second, [0.5])[0.5]["logit_scale"], torch.full(shapes[0], 3.0))


def test_models_that_differ_are_refused_with_the_list(tmp_path: Path):
    first = {"same": torch.ones(1), "text.a": torch.ones(1), "b": torch.ones(2, 3), "ids": torch.ones(3).int()}
    second = {"same": torch.ones(1), "new": torch.ones(1), "b": torch.ones(3, 2), "ids": torch.ones(3)}
    with pytest.raises(UserError) as refusal:
        merged(tmp_path, first, second, [0.5])
    for part in (
        "only in the fine-tuned model: new",
        "only in the zero-shot model: text.a",
        "of another shape: b",
        "integers in only one of them: ids",
    ):
        assert part in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_long_list_of_differences_is_cut(tmp_path: Path):
    many = {f"layer.{index}": torch.ones(1) for index in range(30)}
    with pytest.raises(UserError, match="and 22 more"):
        merged(tmp_path, many | {"same": torch.ones(1)}, {"same": torch.ones(1)}, [0.5])


def test_a_model_without_tensors_is_refused_even_if_all_is_carried(tmp_path: Path):
    with pytest.raises(UserError, match="no tensor in common"):
        match(saved(tmp_path / "zero_shot", model(0)), [Weights("nothing", {})], carry=("*",))


def test_what_is_carried_is_the_zero_shot_models_at_every_alpha(tmp_path: Path):
    first = model(0) | {"transformer.w": wide(5, seed=3), "transformer.b.c": wide(3, seed=4)}
    ensembles = merged(tmp_path, first, model(1), [0.0, *INTERIOR, 1.0], carry=("transformer.*", "unused"))
    for ensemble in ensembles.values():
        assert same_bits(ensemble["transformer.w"], first["transformer.w"])
        assert same_bits(ensemble["transformer.b.c"], first["transformer.b.c"])


def test_a_pattern_carries_only_what_it_matches(tmp_path: Path):
    first = {"same": torch.ones(1), "text.w": torch.ones(1), "visual.w": torch.ones(1)}
    with pytest.raises(UserError, match=r"only in the zero-shot model: visual\.w\."):
        merged(tmp_path, first, {"same": torch.ones(1)}, [0.5], carry=("text.*",))


def test_a_carried_pattern_does_not_hide_what_both_have(tmp_path: Path):
    written = merged(tmp_path, {"w": torch.zeros(3)}, {"w": torch.ones(3)}, [0.5], carry=("*",))
    assert np.allclose(written[0.5]["w"], 0.5)
