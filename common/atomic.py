"""Files that are whole or absent: written beside, flushed to the disk, renamed."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path, mode: str = "wb"):
    """Open a file that appears at `path` only when the block ends without an error.

    The bytes are on the disk before the rename, and the rename before this returns (fsync of the file, then of its
    folder), so a crash or a full disk leaves what was at `path` before. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")  # one name, so that what a kill leaves is written over
    try:
        with open(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def flush_to_disk(path) -> None:
    """Have a file, or the names in a folder, on the disk itself: a rename must not outlive its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
