"""Files that are whole or absent: written beside, flushed to the disk, renamed; never a pipe or a device."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError


@contextmanager
def atomic_write(path, mode: str = "wb"):
    """Open a file that appears at `path` only when the block ends without an error.

    The bytes are on the disk before the rename, and the rename before this returns (fsync of the file, then of its
    folder), so a crash or a full disk leaves what was at `path` before. Missing parent folders are made.
    Raises UserError when something else than a file is at `path`: a device or a pipe is not replaced.
    """
    path = Path(path)
    if path.exists():
        require_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")  # one name, so that what a kill leaves is written over
    try:
        with open(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say where
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def require_file(path) -> None:
    """Raise UserError unless `path` is a regular file or a link to one: opening a pipe would wait for ever."""
    path = Path(path)
    if not path.is_file():
        problem = "no such file"
        if path.is_dir():
            problem = "a folder, not a file"
        elif path.exists():
            problem = "not a regular file but a pipe, a socket or a device"
        raise UserError(f"{path}: {problem}; give the path of a file")


def file_digest(path, algorithm: str) -> str:
    """The digest of a file's bytes in hex; `algorithm` as hashlib calls it."""
    digest = hashlib.new(algorithm, usedforsecurity=False)  # md5 is refused by FIPS systems otherwise
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush_to_disk(path) -> None:
    """Have a file, or the names in a folder, on the disk itself: a rename must not outlive its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
