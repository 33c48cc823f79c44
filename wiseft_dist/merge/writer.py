"""K ensembles from two models in one pass: every input byte is read once, every alpha is written from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from wiseft_dist.errors import UserError
from wiseft_dist.merge.methods.wise import interpolate
from wiseft_dist.merge.safetensors_file import FileLayout, SafetensorsFile, safetensors_layout
from wiseft_dist.models.files import HEAD_FILE, HEAD_PREFIX, WEIGHTS_FILE
from wiseft_dist.progress import progress_bar
from wiseft_dist.weights.pairing import Models
from wiseft_dist.weights.records import Weights

CHUNK_ELEMENTS = 4 * 2**20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def write_ensembles(models: Models, folders: Mapping[float, Path], *, dtype: torch.dtype) -> None:
    """Write the weights of theta_alpha to ``folders[alpha]``, for all alphas in one pass.

    open_clip's tensors go to one safetensors file, the head's to another, so that open_clip loads the first.
    Floating-point tensors are written in ``dtype``, others in their own.

    Raises:
        UserError: if an input holds NaN, Inf or a number beyond ``dtype``, naming the tensor and the model.
        RunError: if writing fails, naming the file.
    """
    total = sum(record.num_bytes for record in models.zero_shot.values())
    with ExitStack() as stack, progress_bar("merging", total=total / 2**20, unit="MiB") as bar:
        outputs = {alpha: _open_outputs(stack, models.zero_shot, folder, dtype) for alpha, folder in folders.items()}
        for name, record in models.zero_shot.items():
            written = _output_dtype(record.dtype, dtype)
            for start, stop in _chunks(record.numel):
                zero_shot = finetuned = _read(models.zero_shot, name, start, stop, written)
                if name not in models.carried:
                    finetuned = _read(models.finetuned[0], name, start, stop, written)
                out = torch.empty(stop - start, dtype=written)
                for alpha, files in outputs.items():
                    interpolate(zero_shot, finetuned, alpha, out=out)
                    files[_file_of(name)].write(name, start, out)
                bar.advance((stop - start) * record.dtype.itemsize / 2**20)


def _open_outputs(stack: ExitStack, weights: Weights, folder: Path, dtype: torch.dtype) -> dict[str, SafetensorsFile]:
    opened = {}
    for file, layout in _layouts(weights, dtype).items():
        opened[file] = SafetensorsFile(folder / file, layout)
        stack.callback(opened[file].close)
    return opened


def _layouts(weights: Weights, dtype: torch.dtype) -> dict[str, FileLayout]:
    files: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    for name, record in weights.items():
        files.setdefault(_file_of(name), {})[name] = (record.shape, _output_dtype(record.dtype, dtype))
    return {file: safetensors_layout(tensors) for file, tensors in files.items()}


def _file_of(name: str) -> str:
    return HEAD_FILE if name.startswith(HEAD_PREFIX) else WEIGHTS_FILE


def _output_dtype(stored: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    return wanted if stored.is_floating_point else stored


def _read(weights: Weights, name: str, start: int, stop: int, written: torch.dtype) -> Tensor:
    """Elements ``[start, stop)``, all of which are finite in the dtype that is written."""
    chunk = weights.read(name, start, stop)
    if chunk.is_floating_point():
        limit = torch.finfo(written).max
        low, high = torch.aminmax(chunk)  # both NaN where any element is
        if not (-limit <= low and high <= limit):
            bad = int((~(chunk.abs() <= limit)).nonzero()[0])
            remedy = (
                f"{written} cannot hold that: write the ensembles in fp32"
                if chunk[bad].isfinite()
                else "A diverged run cannot be merged: choose an earlier checkpoint"
            )
            raise UserError(
                f"{weights.source}: tensor {name} (shape {list(weights[name].shape)}) holds {chunk[bad].item()} "
                f"at element {start + bad}. {remedy}."
            )
    return chunk


def _chunks(numel: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges ``[start, stop)`` of elements."""
    for start in range(0, numel, CHUNK_ELEMENTS):
        yield start, min(start + CHUNK_ELEMENTS, numel)
