"""Weight files as plain arrays. Which container a file is, is read from its first bytes, not from its name.

Containers: NumPy's .npz, Paddle's .pdparams, .safetensors, and what `torch.save` writes, which is read without
PyTorch: a pickle describes tensors as views of storages, whose numbers are members of a zip archive beside it, or
before PyTorch 1.6 stand one after the other behind the pickle.
"""

import hashlib
import math
import os
import pickle
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import deserialize

from common.archives import check_members
from common.atomic import atomic_write, require_file
from common.errors import UserError
from common.safe_pickle import load_pickle

_MOST_GROWTH = 20  # times a file's own bytes that its arrays may take: weights hardly compress, zip bombs do
_SEAL = b"SHA-256:"  # behind the pickle of our own files, then the digest of all before it; paddle.load stops earlier
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"  # paddle.save adds it to every state dict
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that old torch files begin with
_NETWORKS = ("model", "state_dict", "model_state_dict", "module", "ema", "model_ema", "state_dict_ema")
_BFLOAT16 = "bfloat16"
_SAFETENSORS_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": _BFLOAT16, "I64": "<i8", "I32": "<i4"}
_TORCH_KINDS = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": _BFLOAT16}
_TORCH_KINDS |= {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "|i1", "Byte": "|u1"}


class Content(NamedTuple):
    """What a weight file holds."""

    container: str  # npz, torch, pdparams or safetensors
    arrays: dict[str, np.ndarray]  # floating-point numbers as float32
    texts: dict[str, str]
    entry: str  # the table in the file that holds the arrays; "" when the file is that table


def read_arrays(path, entry: str = "") -> Content:
    """Read a weight file; `entry` chooses one of several networks in it.

    Raises UserError for a file that is missing, damaged, of another kind, or holds values that are not finite.
    """
    path = Path(path)
    require_file(path)
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_START))
    if start.startswith(b"PK\x03\x04"):
        container, entries = _read_archive(path)
    elif start == _LEGACY_START:
        with _damage_reported(path, "PyTorch file"):
            container, entries = "torch", _read_old_torch(path)
    # 8 bytes of header length, then JSON. A length of 128 modulo 256 begins like a pickle, but its upper half is 0.
    elif start[8:9] == b"{" and (start[4:8] == bytes(4) or start[:1] != b"\x80"):
        with _damage_reported(path, ".safetensors"):
            container, entries = "safetensors", _read_safetensors(path)
    elif start[:1] == b"\x80":
        container, entries = "pdparams", _read_pdparams(path)
    else:
        raise UserError(f"{path}: no weight file that is known here (.npz, .pdparams, .safetensors, PyTorch's .bin)")
    if not isinstance(entries, dict):
        raise UserError(f"{path}: holds a {type(entries).__name__}, not a table of named arrays")
    entry = _entry_of_network(path, entries, entry)
    table = entries[entry] if entry else entries
    with _damage_reported(path, "PyTorch file"):
        table = {name: value.array() if isinstance(value, _Tensor) else value for name, value in table.items()}
    return Content(container, *_sort_entries(path, table), entry)


def write_sealed(path, entries: dict) -> None:
    """Write a .pdparams, whole or not at all, with a digest behind it that `read_arrays` checks."""
    content = pickle.dumps(entries, protocol=4)
    with atomic_write(path) as file:
        file.write(content)
        file.write(_SEAL + hashlib.sha256(content).digest())


def _check_seal(path, file) -> None:
    """Compare what stands behind the pickle at the place of `file`, if anything, with the digest of all before it."""
    end, seal = file.tell(), file.read()
    file.seek(0)
    if seal and seal != _SEAL + hashlib.sha256(file.read(end)).digest():
        raise UserError(f"{path}: is damaged (its content is not that of its checksum); take a copy that is whole")


def _entry_of_network(path, entries: dict, chosen: str) -> str:
    """Training checkpoints hold the network as one table among others: its name; "" when `entries` is the network."""
    tables = [name for name, value in entries.items() if isinstance(value, dict) and _has_arrays(value)]
    if chosen and chosen not in tables:
        raise UserError(f"{path}: has no network called {chosen!r}; it has {_listed(tables) or 'one without a name'}")
    likely = [chosen] if chosen else [name for name in tables if name in _NETWORKS] or tables
    if len(likely) > 1:
        raise UserError(f"{path}: holds several networks: {_listed(likely)}; say --entry NAME, or save one alone")
    return likely[0] if likely else ""


def _has_arrays(entries: dict) -> bool:
    return any(isinstance(value, np.ndarray | _Tensor) for value in entries.values())


def _listed(names) -> str:
    return ", ".join(f"{name!r:.40}" for name in names[:5])


def _sort_entries(path, entries) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    arrays, texts = {}, {}
    for name, value in entries.items():
        if not (isinstance(name, str) and name.isprintable()):
            raise UserError(f"{path}: has an entry called {name!r:.80}, which is no name of an array")
        if isinstance(value, str):
            texts[name] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            arrays[name] = value
        elif name != _PADDLE_NAME_TABLE:
            kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise UserError(f"{path}: entry {name!r} is of type {kind}, not an array of numbers")
    claimed, size = 4 * sum(value.size for value in arrays.values()), path.stat().st_size
    if claimed > _MOST_GROWTH * size + 2**20:  # before it takes any memory
        raise UserError(f"{path}: claims {claimed / 1e6:,.0f} MB of arrays in a file of {size / 1e6:,.2f} MB; refused")
    for name, value in arrays.items():
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):  # a float64 beyond float32 is found by the next line
                arrays[name] = value = value.astype(np.float32, copy=False)
            if not np.isfinite(value).all():
                raise UserError(f"{path}: {name} holds values that are not finite; the file is no use")
    return arrays, texts


@contextmanager
def _damage_reported(path, what: str):
    """Every error in the block, of which a damaged file can raise nearly any, as one line for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as reason:
        detail = (str(reason) or type(reason).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable {what} ({detail}); get the file again") from None


def _read_archive(path) -> tuple[str, dict[str, np.ndarray]]:
    """A zip archive: NumPy's .npz, or a file of PyTorch 1.6 and later."""
    with _damage_reported(path, ".npz or PyTorch file"), zipfile.ZipFile(path) as archive:
        check_members(archive, path, _MOST_GROWTH)
        if any(name.split("/")[-1] == "data.pkl" for name in archive.namelist()):
            return "torch", _read_torch(path, archive)
        return "npz", {m.filename.removesuffix(".npy"): _read_npy(archive, m) for m in archive.infolist()}


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an .npz. NumPy reserves what the header claims, so that is compared with the member's size first."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds pickled objects")
        if math.prod(shape) * dtype.itemsize + file.tell() != member.file_size or any(n < 0 for n in shape):
            raise ValueError(f"{member.filename} claims the shape {shape} in {member.file_size:,} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_pdparams(path):
    with open(path, "rb") as file:
        entries = load_pickle(file, str(path), encoding="latin1")
        _check_seal(path, file)
    if isinstance(entries, dict):
        for name, value in entries.items():
            if isinstance(value, tuple) and len(value) == 2:  # a bare tensor is written as (name, array)
                entries[name] = value = value[1]
            if isinstance(value, np.ndarray) and value.dtype == np.uint16:  # what Paddle makes of bfloat16
                entries[name] = _numbers(value.tobytes(), _BFLOAT16).reshape(value.shape)
    return entries


def _read_safetensors(path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, entry in deserialize(path.read_bytes()):
        if entry["dtype"] not in _SAFETENSORS_KINDS:
            raise ValueError(f"{name} is of type {entry['dtype']}")
        arrays[name] = _numbers(entry["data"], _SAFETENSORS_KINDS[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _numbers(data, kind: str) -> np.ndarray:
    """The 1-D array in `data`. NumPy has no bfloat16: it is the upper half of a float32."""
    if kind == _BFLOAT16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, kind)


# ---- PyTorch


@dataclass
class _Storage:
    kind: str
    count: int
    values: np.ndarray | None = None  # follows behind the pickle

    @property
    def bytes(self) -> int:
        return self.count * (2 if self.kind == _BFLOAT16 else np.dtype(self.kind).itemsize)


@dataclass
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers

    def array(self) -> np.ndarray:
        """A view of the storage; ValueError when it reaches outside or is larger than that."""
        values, plain = self.storage.values, (self.offset, *self.shape, *self.strides)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if min(plain) < 0 or last >= len(values) or math.prod(self.shape) > len(values):
            raise ValueError(f"a tensor of shape {self.shape} in a storage of {len(values)} numbers")
        steps = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False)


_TORCH_NAMES = {
    **{("torch", f"{name}Storage"): kind for name, kind in _TORCH_KINDS.items()},
    ("torch._utils", "_rebuild_tensor"): lambda *args: _Tensor(*args[:4]),
    ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _Tensor(*args[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


def _load_torch(file, path) -> tuple:
    """(the pickle at the place of `file`, the storages that it names); their numbers are still to come."""
    storages = {}

    def persistent_load(entry):
        word, kind, key, _device, count, *view = entry
        if word != "storage" or kind not in _TORCH_KINDS.values() or any(part is not None for part in view):
            raise ValueError("a persistent entry of an unknown kind")
        return storages.setdefault(key, _Storage(kind, count))

    return load_pickle(file, str(path), allowed=_TORCH_NAMES, persistent_load=persistent_load), storages


def _read_torch(path, archive: zipfile.ZipFile):
    (root,) = (n.removesuffix("data.pkl") for n in archive.namelist() if n.split("/")[-1] == "data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("written on a big-endian machine")
    with archive.open(f"{root}data.pkl") as file:
        entries, storages = _load_torch(file, path)
    for key, storage in storages.items():
        member = archive.getinfo(f"{root}data/{key}")
        if member.file_size != storage.bytes:
            raise ValueError(f"storage {key} has {member.file_size:,} bytes instead of {storage.bytes:,}")
        storage.values = _numbers(archive.read(member), storage.kind)
    return entries


def _read_old_torch(path):
    with open(path, "rb") as file:
        _magic, _protocol, machine = (load_pickle(file, str(path)) for _ in range(3))
        if not machine["little_endian"]:
            raise ValueError("written on a big-endian machine")
        entries, storages = _load_torch(file, path)
        for key in load_pickle(file, str(path)):
            storage, count = storages[key], int.from_bytes(file.read(8), "little")
            if count != storage.count or storage.bytes > os.path.getsize(path) - file.tell():
                raise ValueError(f"storage {key} is not whole")
            storage.values = _numbers(file.read(storage.bytes), storage.kind)
    return entries
