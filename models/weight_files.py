"""Weight files as plain arrays: which container a file is, is read from its first bytes, not from its name."""

import math
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import deserialize

from common.errors import UserError
from common.safe_pickle import load_pickle
from models.torch_files import BFLOAT16, LEGACY_START, is_torch_zip, numbers, read_legacy, read_zip

_PADDLE_NAME_TABLE = "StructuredToParameterName@@"  # paddle.save adds it to every state dict
_SAFETENSORS_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "I64": "<i8", "I32": "<i4"}
_MOST_GROWTH = 20  # times a file's own bytes that its arrays may take: weights hardly compress, zip bombs do


def read_arrays(path) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
    """Return (container, arrays by name, text entries by name) of a weight file.

    The container is "npz", "torch", "pdparams" or "safetensors". Floating-point arrays are float32. Raises UserError
    for a file that is missing, damaged, of another kind, or holds values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the weight file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a device or a pipe; give a weight file")
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY_START))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not start:
        raise UserError(f"{path}: is empty; get the file again")
    if start.startswith(b"PK\x03\x04"):
        container, entries = _read_archive(path)
    elif start == LEGACY_START:
        with _damage_reported(path, "PyTorch file"):
            container, entries = "torch", read_legacy(path)
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
    return container, *_sort_entries(path, entries)


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
    _check_growth(path, 4 * sum(value.size for value in arrays.values()))
    for name, value in arrays.items():
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):  # a float64 beyond float32 is found by the next line
                arrays[name] = value = value.astype(np.float32, copy=False)
            if not np.isfinite(value).all():
                raise UserError(f"{path}: {name} holds values that are not finite; the file is no use")
    return arrays, texts


def _check_growth(path, claimed: int) -> None:
    """Refuse a file that claims far more bytes of arrays than it has itself, before they take any memory."""
    size = path.stat().st_size
    if claimed > _MOST_GROWTH * size + 2**20:
        raise UserError(f"{path}: claims {claimed / 1e6:,.0f} MB of arrays in a file of {size / 1e6:,.2f} MB; refused")


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
        _check_growth(path, sum(member.file_size for member in archive.infolist()))
        if is_torch_zip(archive):
            return "torch", read_zip(path, archive)
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
    if isinstance(entries, dict):
        for name, value in entries.items():
            if isinstance(value, tuple) and len(value) == 2:  # a bare tensor is written as (name, array)
                entries[name] = value = value[1]
            if isinstance(value, np.ndarray) and value.dtype == np.uint16:  # what Paddle makes of bfloat16
                entries[name] = numbers(value.tobytes(), BFLOAT16).reshape(value.shape)
    return entries


def _read_safetensors(path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, entry in deserialize(path.read_bytes()):
        if entry["dtype"] not in _SAFETENSORS_KINDS:
            raise ValueError(f"{name} is of type {entry['dtype']}")
        arrays[name] = numbers(entry["data"], _SAFETENSORS_KINDS[entry["dtype"]]).reshape(entry["shape"])
    return arrays
