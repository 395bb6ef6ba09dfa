"""Weight files as plain arrays. Which container a file is, is read from its first bytes, not from its name.

Containers: NumPy's .npz, Paddle's .pdparams, .safetensors, and what `torch.save` writes since PyTorch 1.6, which is
read without PyTorch: a zip archive of a pickle, which describes tensors as views of storages, and of these storages.
"""

import functools
import hashlib
import io
import math
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
from safetensors import deserialize

from common.errors import UserError
from common.safe_pickle import load_pickle
from common.system import atomic_write, require_file

_MOST_GROWTH = 20  # times a file's own bytes that its arrays may take: weights hardly compress, zip bombs do
SMALL = 1 << 26  # bytes of an unpacked zip that do no harm however much they grew
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile bounds the memory of these two alone
_SEAL = b"SHA-256:"  # behind the pickle of our own files, then the digest of all before it; paddle.load stops earlier
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"  # paddle.save adds it to every state dict
_NETWORKS = ("model", "state_dict", "model_state_dict", "module", "ema", "model_ema", "state_dict_ema")
_BFLOAT16 = "bfloat16"
_SAFETENSORS_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": _BFLOAT16, "I64": "<i8", "I32": "<i4"}
_TORCH_KINDS = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": _BFLOAT16}
_TORCH_KINDS |= {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "|i1", "Byte": "|u1"}


def read_arrays(path, entry: str = "") -> tuple[str, dict[str, np.ndarray], dict[str, str], str]:
    """(container, arrays, texts, entry) of a weight file; `entry` chooses one of several networks in it.

    Floating-point numbers come as float32. The entry is the table in the file that holds the arrays, "" when the file
    is that table. Raises UserError for a file that is damaged, of another kind, or holds values that are not finite.
    """
    path = Path(path)
    require_file(path)
    try:
        container, entries = _read_container(path)
    except UserError:
        raise
    except Exception as reason:  # a damaged file raises nearly any
        detail = (str(reason)[:200] or type(reason).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable weight file ({detail}); get the file again") from None
    if not isinstance(entries, dict):
        raise UserError(f"{path}: holds a {type(entries).__name__}, not a table of named arrays")
    entry = _entry_of_network(path, entries, entry)
    return container, *_sort_entries(path, entries[entry] if entry else entries), entry


def write_sealed(path, entries: dict) -> None:
    """Write a .pdparams, whole or not at all, with a digest behind it that `read_arrays` checks."""
    content = pickle.dumps(entries, protocol=4)
    with atomic_write(path) as file:
        file.write(content)
        file.write(_SEAL + hashlib.sha256(content).digest())


def _entry_of_network(path, entries: dict, chosen: str) -> str:
    """Training checkpoints hold the network as one table among others: its name; "" when `entries` is the network."""
    tables = [
        name
        for name, value in entries.items()
        if isinstance(value, dict) and any(isinstance(part, np.ndarray) for part in value.values())
    ]
    likely = [name for name in tables if name in _NETWORKS] or tables
    listed = ", ".join(f"{name!r:.40}" for name in likely[:5])
    if chosen and chosen not in tables:
        raise UserError(f"{path}: has no network called {chosen!r}; it has {listed or 'one without a name'}")
    if not chosen and len(likely) > 1:
        raise UserError(f"{path}: holds several networks: {listed}; say --entry NAME, or save one alone")
    return chosen or next(iter(likely), "")


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


# ---- containers


def _read_container(path) -> tuple[str, object]:
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            names = dict.fromkeys(archive.namelist())  # one that is listed again would be unpacked again
            if any(name.split("/")[-1] == "data.pkl" for name in names):
                return "torch", _read_torch(path, archive)
            return "npz", {name.removesuffix(".npy"): _read_npy(_read_member(archive, name)) for name in names}
    # 8 bytes of header length, then JSON. A length of 128 modulo 256 begins like a pickle, but its upper half is 0.
    if start[8:9] == b"{" and (start[4:8] == bytes(4) or start[:1] != b"\x80"):
        return "safetensors", _read_safetensors(path)
    if start[:1] == b"\x80":
        return "pdparams", _read_pdparams(path)
    raise UserError(f"{path}: no weight file that is known here (.npz, .pdparams, .safetensors, PyTorch's .bin)")


def check_members(archive: zipfile.ZipFile, path) -> None:
    """Refuse a zip that costs much more than it weighs, by what its entries say: `_read_member` unpacks no more."""
    for member in archive.infolist():
        if member.flag_bits & 1 or member.compress_type not in _METHODS:
            text = f"{path}: member {member.filename[:80]!r} is encrypted or compressed by another method than Deflate"
            raise UserError(f"{text}; pack it anew")
    packed = archive.fp.seek(0, os.SEEK_END)
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(SMALL, _MOST_GROWTH * packed):
        text = f"{path}: {packed:,} bytes that become {unpacked:,}, more than {_MOST_GROWTH} times as many"
        raise UserError(f"{text}; it was not read, get the file again")


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """`archive.read`, which would unpack up to 2 GB before it cuts them to what the entry says."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


def _read_npy(content: bytes) -> np.ndarray:
    """One array of an .npz, a view of its bytes: np.load reserves what the header claims."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if by_column else "C")


def _read_pdparams(path):
    content = path.read_bytes()
    file = io.BytesIO(content)
    entries = load_pickle(file, str(path), encoding="latin1")
    end = file.tell()
    if content[end:] and content[end:] != _SEAL + hashlib.sha256(memoryview(content)[:end]).digest():
        text = "is damaged (its content is not that of its checksum), or written by PyTorch before 1.6"
        raise UserError(f"{path}: {text}; take a copy that is whole, or save it anew with a newer PyTorch")
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


def _read_torch(path, archive: zipfile.ZipFile):
    (root,) = (n.removesuffix("data.pkl") for n in archive.namelist() if n.split("/")[-1] == "data.pkl")
    if f"{root}byteorder" in archive.namelist() and _read_member(archive, f"{root}byteorder") != b"little":
        raise ValueError("written on a big-endian machine")

    kinds = {}

    @functools.cache
    def numbers(key: str) -> np.ndarray:
        return _numbers(_read_member(archive, f"{root}data/{key}"), kinds[key])

    def storage(entry) -> np.ndarray:
        word, kind, key, _device, count = entry
        if word != "storage" or kind not in _TORCH_KINDS.values() or not isinstance(key, str):
            raise ValueError("a persistent entry of an unknown kind")
        if kinds.setdefault(key, kind) != kind:  # it would be unpacked once for each
            raise ValueError(f"storage {key} is of two types")
        found = numbers(key)
        if len(found) != count:
            raise ValueError(f"storage {key} has {len(found):,} numbers instead of {count:,}")
        return found

    content = io.BytesIO(_read_member(archive, f"{root}data.pkl"))
    return load_pickle(content, str(path), allowed=_TORCH_NAMES, persistent_load=storage)


def _view(numbers, offset, shape, strides, *_) -> np.ndarray:
    """A tensor of torch; offset and strides in numbers. ValueError when it leaves its storage or is larger than that.

    NumPy takes no `numbers` with gaps, as a view of a view could be.
    """
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min([offset, *shape, *strides]) < 0 or last >= len(numbers) or math.prod(shape) > len(numbers):
        raise ValueError(f"a tensor of shape {shape} in a storage of {len(numbers)} numbers")
    steps = [step * numbers.itemsize for step in strides]
    return np.ndarray(shape, numbers.dtype, numbers, offset * numbers.itemsize, steps)


_TORCH_NAMES = {
    **{("torch", f"{name}Storage"): kind for name, kind in _TORCH_KINDS.items()},
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
