"""Unpickling what nobody vouches for: a pickle may only name the types a checkpoint needs, and gets stand-ins for them.

A pickle calls whatever it names and sets attributes on whatever that gives (BUILD), so no stand-in has attributes that
can be set: what a tensor is, only the archive says.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, NamedTuple

import torch

from wiseft_dist.errors import UserError
from wiseft_dist.weights.places import File
from wiseft_dist.weights.stored_tensor import StoredTensor
from wiseft_dist.weights.torchscript import is_scripted, scripted_class

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Storage(NamedTuple):
    """Where the raw numbers of tensors lie."""

    file: File
    offset: int
    """In bytes."""
    numel: int
    dtype: torch.dtype


class Opaque:
    """Stands in for an object whose class is known to be harmless and whose content is not needed."""

    __slots__ = ("arguments",)

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        """Ignore whatever the pickle says."""


class RestrictedUnpickler(pickle.Unpickler):
    """Gives a :class:`StoredTensor` for every tensor.

    Args:
        stream: The pickle.
        file: What messages name.
        locate: From the key of a storage, its dtype and its number of elements to its place.

    Raises:
        UserError: from ``load``, if the pickle names anything else; or any other exception, if it is damaged.
    """

    def __init__(self, stream: io.BytesIO, file: File, locate: Callable[[str, torch.dtype, int], Storage]) -> None:
        super().__init__(stream)
        self._file, self._locate = file, locate

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for a class or a function."""
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if is_scripted(module):
            return scripted_class(module, name)
        found = _ALLOWED.get((module, name))
        if found is None:
            raise UserError(
                f"{self._file}: its pickle asks for {module}.{name}, which no checkpoint needs: refused; "
                "load it where it is trusted, and save only its state dict with torch.save."
            )
        return found

    def persistent_load(self, identifier: Any) -> Storage:
        """The storage that a tensor refers to."""
        kind, dtype, key, _location, numel = identifier
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise UserError(f"{self._file}: unknown persistent object {kind!r} in its pickle.")
        return self._locate(str(key), dtype, int(numel))


class _Dictionary(dict[Any, Any]):
    """A dictionary without the attributes that the library's own ordered ones have."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore what a module's state dict says of versions."""


class _DefaultDictionary(_Dictionary):
    """Without its default."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        super().__init__()


class _Function:
    """A function that a pickle can call, and not set attributes of as of Python's own."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise TypeError("it sets attributes of a function")


def _rebuild_tensor(
    storage: object, storage_offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> StoredTensor:
    """In place of ``torch._utils._rebuild_tensor_v2``."""
    if type(storage) is not Storage:
        raise TypeError("a tensor without a storage")
    size, stride, storage_offset = tuple(map(index, size)), tuple(map(index, stride)), index(storage_offset)
    reach = storage_offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if all(size) else 0
    if reach > storage.numel or min([storage_offset, *size, *stride], default=0) < 0:
        raise ValueError(f"a tensor of shape {list(size)} reaches outside its storage of {storage.numel} elements")
    return StoredTensor(
        file=storage.file,
        offset=storage.offset + storage_offset * storage.dtype.itemsize,
        shape=size,
        dtype=storage.dtype,
        contiguous=_is_contiguous(size, stride),
    )


def _is_contiguous(size: Sequence[int], stride: Sequence[int]) -> bool:
    if 0 in size:
        return True
    expected = 1
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True


def _first(value: Any, *_: object) -> Any:
    """In place of TorchScript's tags of types, which only wrap their first argument."""
    return value


def _rebuild_parameter(tensor: object, *_: object) -> StoredTensor:
    if type(tensor) is not StoredTensor:
        raise TypeError("a parameter that is no tensor")
    return tensor


def _rebuild_from_type(build: Callable[..., object], _type: object, arguments: Any, _state: object) -> StoredTensor:
    return _rebuild_parameter(build(*arguments))


_HARMLESS = {
    "torch": ("Tensor", "device"),
    "torch.nn.parameter": ("Parameter",),
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "collections": ("Counter",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "_codecs": ("encode",),
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    ),
    **dict.fromkeys(
        ("builtins", "__builtin__"),
        ("bool", "bytearray", "bytes", "complex", "float", "int", "list", "long", "str", "tuple", "unicode"),
    ),
    "numpy": ("dtype", "ndarray"),
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), ("_reconstruct", "scalar")),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), ("_frombuffer",)),
}
"""By module, what training files hold beside tensors; its content is ignored."""
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, name): Opaque for module, names in _HARMLESS.items() for name in names},
    ("collections", "OrderedDict"): _Dictionary,
    ("collections", "defaultdict"): _DefaultDictionary,
    ("builtins", "dict"): _Dictionary,
    ("__builtin__", "dict"): _Dictionary,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_rebuild_from_type),
    ("torch.jit._pickle", "restore_type_tag"): _Function(_first),
    ("torch.jit._pickle", "build_intlist"): _Function(_first),
    ("torch.jit._pickle", "build_doublelist"): _Function(_first),
    ("torch.jit._pickle", "build_boollist"): _Function(_first),
    ("torch.jit._pickle", "build_tensorlist"): _Function(_first),
}
