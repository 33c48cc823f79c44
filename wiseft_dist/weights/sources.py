"""Opening anything people have: safetensors, ``torch.save`` files and DeepSpeed checkpoints, as named slices.

On disk, in a bucket, or on a web server: whatever is opened is read by position, and no more than is needed of it.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.weights.average import open_average
from wiseft_dist.weights.places import File, Folder, find_file, is_named_like_file, open_folder
from wiseft_dist.weights.pretrained_tags import check_is_open_clip, download_tag, is_tag
from wiseft_dist.weights.records import Origin, Weights, stored_record
from wiseft_dist.weights.safetensors_files import INDEX_SUFFIX, open_indexed, open_safetensors
from wiseft_dist.weights.stored_tensor import StoredTensor
from wiseft_dist.weights.torch_archive import read_archive
from wiseft_dist.weights.torchscript import ScriptedState
from wiseft_dist.weights.universal import open_universal
from wiseft_dist.weights.zero import open_zero
from wiseft_dist.weights.zero_files import is_universal, is_zero_checkpoint, tagged_folder

OPENAI_SETTINGS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the weights."""


def open_weights(source: Path | str, *, average: bool = False) -> Weights:
    """Open a model.

    Args:
        source: A path, or the URL (s3, gs, az, http, https), of a safetensors file, an index of several or a folder of
            them; a ``torch.save`` file or a TorchScript archive; a DeepSpeed checkpoint of any ZeRO stage, or a
            universal one. Or a name and a pretrained tag of open_clip's: ``ViT-B-32:openai``.
        average: Of a run's checkpoint, take the moving average of the weights instead of the last ones.

    Raises:
        UserError: if nothing is there, it is no such thing, or it holds no average.
        RunError: if a store fails for good.
    """
    source = str(source)
    storage.refuse_credentials(source)
    if average:
        return open_average(_local(source))
    file = find_file(source)
    if file is not None:
        return _open_file(file)
    if source.startswith("http") and is_named_like_file(source):
        raise UserError(f"{source}: no such checkpoint.")
    folder = open_folder(source)
    if is_zero_checkpoint(folder):
        tagged = tagged_folder(folder)
        return open_universal(tagged) if is_universal(tagged) else open_zero(tagged)
    if storage.is_remote(source) or storage.local_path(source).is_dir():
        return _open_safetensors_of(folder)
    if is_tag(source):
        weights = _open_file(download_tag(source))
        check_is_open_clip(source, weights)
        return weights
    raise UserError(f"{source}: no such checkpoint.")


def _local(source: str) -> Path:
    if storage.is_remote(source):
        raise UserError(f"{source}: a moving average is only read from a run's checkpoint on disk.")
    return storage.local_path(source)


def _open_file(file: File) -> Weights:
    if file.name.endswith(INDEX_SUFFIX):
        return open_indexed(open_folder(storage.parent(str(file))), file.name)
    if file.name.endswith(".safetensors"):
        return open_safetensors([file])
    return open_torch_file(file)


def _open_safetensors_of(folder: Folder) -> Weights:
    """The files of a model folder: those its index names, else all of them."""
    names = folder.names()
    if names is None:
        raise UserError(
            f"{folder}: no DeepSpeed checkpoint, and a web server does not list its files; "
            f"name one file, or the index (*{INDEX_SUFFIX}) of several."
        )
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indexes) > 1:
        raise UserError(f"{folder}: holds two models, {indexes[0]} and {indexes[1]}; name one of them.")
    if indexes:
        return open_indexed(folder, indexes[0])
    files = folder.look_up(name for name in names if name.endswith(".safetensors"))
    if not files:
        raise UserError(f"{folder}: neither a DeepSpeed checkpoint nor a folder with *.safetensors.")
    return open_safetensors(files.values())


def open_torch_file(file: File) -> Weights:
    """Open a state dict saved by torch, plain or under ``state_dict``, with or without ``module.`` prefixes.

    Of a TorchScript archive it is the module's, without the numbers that OpenAI's have among the weights.

    Raises:
        UserError: if the file is damaged, or holds no state dict.
        RunError: if a store fails for good.
    """
    saved = read_archive(file)
    kind = "TorchScript archive" if isinstance(saved, ScriptedState) else "torch state dict"
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    named = saved.items() if isinstance(saved, dict) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, StoredTensor)}
    if isinstance(saved, ScriptedState):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_SETTINGS}
    if not tensors:
        raise UserError(f"{file}: holds no state dict.")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return Weights(str(file), {name: stored_record(name, tensor) for name, tensor in tensors.items()}, Origin(kind))
