"""PyTorch's weight files (`torch.save` of a state dict) as arrays, without PyTorch.

Such a file is a pickle that describes tensors as views of storages, and beside it the numbers of the storages: as
members of a zip archive, or before PyTorch 1.6 one after the other behind the pickle.
"""

import math
import os
import zipfile
from dataclasses import dataclass

import numpy as np

from common.safe_pickle import load_pickle

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that old files begin with
BFLOAT16 = "bfloat16"

_KINDS = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
}


def numbers(data, kind: str) -> np.ndarray:
    """The 1-D array in `data`. NumPy has no bfloat16: it is the upper half of a float32."""
    if kind == BFLOAT16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, kind)


@dataclass(frozen=True)
class _Storage:
    key: str
    kind: str
    count: int

    @property
    def bytes(self) -> int:
        return self.count * (2 if self.kind == BFLOAT16 else np.dtype(self.kind).itemsize)


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers

    def of(self, values: np.ndarray) -> np.ndarray:
        """The view of the storage's `values`; ValueError when it reaches outside or is larger than they are."""
        plain = (self.offset, *self.shape, *self.strides)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if min(plain) < 0 or last >= len(values) or math.prod(self.shape) > len(values):
            raise ValueError(f"a tensor of shape {self.shape} in a storage of {len(values)} numbers")
        steps = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False)


_ALLOWED = {
    **{("torch", name): kind for name, kind in _KINDS.items()},
    ("torch._utils", "_rebuild_tensor"): lambda *args: _Tensor(*args[:4]),
    ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _Tensor(*args[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


def _load(file, path, storages: dict):
    """The pickle at the place of `file`, tensors as `_Tensor`; adds every storage that it names to `storages`."""

    def persistent_load(entry):
        word, kind, key, _device, count, *view = entry
        if word != "storage" or kind not in _KINDS.values() or any(part is not None for part in view):
            raise ValueError(f"a persistent entry {str(word)!r} of an unknown kind")
        return storages.setdefault(key, _Storage(key, kind, count))

    return load_pickle(file, str(path), allowed=_ALLOWED, persistent_load=persistent_load)


def _views(tree, values: dict):
    if not isinstance(tree, dict):
        return tree
    return {k: v.of(values[v.storage.key]) if isinstance(v, _Tensor) else v for k, v in tree.items()}


def is_torch_zip(archive: zipfile.ZipFile) -> bool:
    return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())


def read_zip(path, archive: zipfile.ZipFile):
    """The object in an open torch archive, its tensors as arrays. Raises ValueError and what `zipfile` raises."""
    (root,) = (n.removesuffix("data.pkl") for n in archive.namelist() if n.split("/")[-1] == "data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("written on a big-endian machine")
    storages, values = {}, {}
    with archive.open(f"{root}data.pkl") as file:
        tree = _load(file, path, storages)
    for key, storage in storages.items():
        member = archive.getinfo(f"{root}data/{key}")
        if member.file_size != storage.bytes:
            raise ValueError(f"storage {key} has {member.file_size:,} bytes instead of {storage.bytes:,}")
        values[key] = numbers(archive.read(member), storage.kind)
    return _views(tree, values)


def read_legacy(path):
    """The object in a file from before the zip format, its tensors as arrays. Raises ValueError and UserError."""
    storages, values = {}, {}
    with open(path, "rb") as file:
        _magic, _protocol, machine = (load_pickle(file, str(path)) for _ in range(3))
        if not machine["little_endian"]:
            raise ValueError("written on a big-endian machine")
        tree = _load(file, path, storages)
        for key in load_pickle(file, str(path)):
            storage, count = storages[key], int.from_bytes(file.read(8), "little")
            if count != storage.count or storage.bytes > os.path.getsize(path) - file.tell():
                raise ValueError(f"storage {key} is not whole")
            values[key] = numbers(file.read(storage.bytes), storage.kind)
    return _views(tree, values)
