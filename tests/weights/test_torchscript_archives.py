"""TorchScript archives, such as OpenAI's, against torch's own loader, and that nothing in them runs."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP, convert_weights_to_fp16
from torch import Tensor, nn

from wiseft_dist.errors import UserError
from wiseft_dist.weights.sources import open_weights

SETTINGS = {"input_resolution": 16, "context_length": 8, "vocab_size": 50}
VISION = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}


class Block(nn.Module):
    """With a tensor that is no part of the state dict, as the attention masks of OpenAI's models."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mask = torch.ones(4, 4)
        self.sizes = [1, 2]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs) @ self.mask.to(inputs.dtype)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("statistics", torch.randn(3))
        self.register_buffer("vocab_size", torch.tensor(5))

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        return inputs * self.scale


@pytest.fixture(scope="module")
def openai_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as OpenAI publishes them: fp16 but for layer norms, with three settings among its buffers."""
    torch.manual_seed(0)
    model = CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=True).eval()
    convert_weights_to_fp16(model)
    for name, value in SETTINGS.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    path = tmp_path_factory.mktemp("openai") / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(model), path)
    return path


def assert_is_what_torch_loads(path: Path) -> set[str]:
    loaded = torch.jit.load(path).state_dict()
    expected = {name: tensor for name, tensor in loaded.items() if name not in SETTINGS}
    with open_weights(path) as weights:
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            assert weights[name].dtype == tensor.dtype and torch.equal(weights.tensor(name), tensor), name
    return set(loaded)


def test_an_archive_of_openais_kind_is_what_torch_loads_without_its_settings(openai_like: Path):
    loaded = assert_is_what_torch_loads(openai_like)
    assert loaded >= {*SETTINGS, "visual.transformer.resblocks.1.attn.in_proj_weight", "logit_scale"}
    with open_weights(openai_like) as weights:
        assert {weights["visual.conv1.weight"].dtype, weights["ln_final.weight"].dtype} == {
            torch.float16,
            torch.float32,
        }


@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.zeros(2, 4))])
def test_tensors_that_are_no_part_of_the_state_dict_are_left_out(tmp_path: Path, make):
    torch.jit.save(make(Tower()), tmp_path / "m.pt")
    assert "blocks.1.linear.weight" in assert_is_what_torch_loads(tmp_path / "m.pt")


def changed(source: Path, target: Path, member: str, content: bytes) -> Path:
    """A copy of an archive with another content of one member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename.endswith(member) else old.read(info))
    return target


def test_code_in_an_archive_is_read_and_never_run(tmp_path: Path):
    """The source of its classes says which tensors belong to the state dict; it may say anything else."""
    torch.jit.save(torch.jit.script(Tower()), tmp_path / "m.pt")
    mark = tmp_path / "it_ran"
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        member = next(
            name for name in archive.namelist() if name.endswith(".py") and "Tower" in str(archive.read(name))
        )
        code = archive.read(member).decode()
    touch = f"open({str(mark)!r}, 'w')"
    evil = changed(tmp_path / "m.pt", tmp_path / "evil.pt", member, f"{touch}\n{code}".encode())
    with open_weights(evil) as weights:
        assert "scale" in weights
    listed = code.replace("__parameters__ = [", f"__parameters__ = [{touch}, ")
    assert listed != code
    with pytest.raises(UserError, match=r"lists\.pt: not a readable torch checkpoint"):
        open_weights(changed(tmp_path / "m.pt", tmp_path / "lists.pt", member, listed.encode()))
    assert not mark.exists()


@pytest.mark.parametrize("target", ["cposix\nsystem\n", "cbuiltins\nexec\n", "ctorch._C\n_jit_set_profiling_mode\n"])
def test_a_function_in_an_archives_pickle_is_refused_by_name_and_not_called(tmp_path: Path, target: str):
    torch.jit.save(torch.jit.script(Tower()), tmp_path / "m.pt")
    mark = tmp_path / "it_ran"
    called = f"\x80\x02{target}(X{chr(len(f'touch {mark}'))}\0\0\0touch {mark}tR.".encode("latin-1")
    with pytest.raises(UserError, match=target[1:].strip().replace("\n", r"\.") + ", which no checkpoint needs"):
        open_weights(changed(tmp_path / "m.pt", tmp_path / "evil.pt", "data.pkl", called))
    assert not mark.exists()
    if "system" in target:
        pickle.loads(called)
        assert mark.exists(), "the pickle is harmless: this test shows nothing"


def test_a_module_that_holds_itself_is_refused(tmp_path: Path):
    looped = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00mh\x00sb."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", looped)
    with pytest.raises(UserError, match=r"m\.pt: not a readable torch checkpoint"):
        open_weights(tmp_path / "m.pt")


def test_modules_that_hold_each_other_twice_are_refused_before_all_paths_are_taken(tmp_path: Path):
    """With 40 of them there are 2^40 names."""
    made = b"c__torch__.m\nM\n)\x81}bq\x00"
    for number in range(40):
        held = b"h" + bytes([number])
        made += b"0c__torch__.m\nM\n)\x81}(X\1\0\0\0a" + held + b"X\1\0\0\0b" + held + b"ubq" + bytes([number + 1])
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + made + b".")
    with pytest.raises(UserError, match="more than 100,000 modules"):
        open_weights(tmp_path / "m.pt")
