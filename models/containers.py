"""Weight files as plain arrays: which container a file is, is read from its first bytes, not from its name."""

import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from common.errors import UserError
from common.safe_pickle import load_pickle

_PADDLE_NAME_TABLE = "StructuredToParameterName@@"  # paddle.save adds it to every state dict


def read_arrays(path) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
    """Return (container, arrays by name, text entries by name) of a weight file.

    The container is "npz", "pdparams" or "safetensors". Floating-point arrays are float32. Raises UserError for a
    file that is missing, damaged, of another kind, or holds values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the weight file in it")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not start:
        raise UserError(f"{path}: is empty; get the file again")
    if start.startswith(b"PK\x03\x04"):
        container, entries = "npz", _read_npz(path)
    elif start[:1] == b"\x80":
        with open(path, "rb") as file:
            container, entries = "pdparams", load_pickle(file, str(path), encoding="latin1")
    elif start[8:9] == b"{":
        container, entries = "safetensors", _read_safetensors(path)
    else:
        raise UserError(f"{path}: no weight file that is known here (.npz, .pdparams, .safetensors)")
    if not isinstance(entries, dict):
        raise UserError(f"{path}: holds a {type(entries).__name__}, not a table of named arrays")
    return container, *_sort_entries(path, entries)


def _sort_entries(path, entries) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    arrays, texts = {}, {}
    for name, value in entries.items():
        if isinstance(value, tuple) and len(value) == 2:  # what paddle.save writes for a bare tensor: (name, array)
            value = value[1]
        if isinstance(value, str):
            texts[name] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            if value.dtype.kind == "f":
                value = value.astype(np.float32)
                if not np.isfinite(value).all():
                    raise UserError(f"{path}: {name} holds values that are not finite; the file is no use")
            arrays[name] = value
        elif name != _PADDLE_NAME_TABLE:
            raise UserError(f"{path}: entry {name!r} is a {type(value).__name__}, not an array of numbers")
    return arrays, texts


def _read_npz(path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as reason:
        raise UserError(f"{path}: not a readable .npz ({reason}); get the file again") from None


def _read_safetensors(path) -> dict[str, np.ndarray]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError) as reason:
        raise UserError(f"{path}: not a readable .safetensors ({reason}); get the file again") from None
