"""What is asked of the operating system: files that are whole or absent, locks, variables, the lives of processes.

A file is written beside its place, flushed to the disk and renamed; it never replaces a pipe or a device. A lock is a
file that one process at a time holds; it ends with the process, however that ends.
"""

import ctypes
import errno
import hashlib
import os
import signal
import sys
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without locks answers
MANY = 10_000  # more than there are processes or nodes
_PR_SET_PDEATHSIG = 1
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # names and numbers of malloc.h


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


@contextmanager
def locked(path, busy):
    """Hold the lock file `path` while the block runs; the file exists only as long as somebody holds it.

    `busy(holder)` is called when another process holds it, with a text that says which one: it may raise; when it
    returns, this process waits. A file system without locks is named on stderr, and the block runs without one.
    """
    path = Path(path)
    lock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = ""
            with suppress(OSError):  # it may end just now
                holder = path.read_text().strip()
            busy(holder or "another process")
            lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
            raise
        print(f"warning: {path}: no locks here ({error.strerror}); make sure nothing else works there", file=sys.stderr)
        yield
        return
    try:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        path.write_text(f"process {os.getpid()} on {os.uname().nodename} since {now}\n")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held; filelock notices that the file is gone and makes it anew
        lock.release()


def number_from(variable: str, default: str, numbers: range, meaning: str) -> int:
    """A whole number from the environment; UserError where it is none of `numbers`."""
    text = os.environ.get(variable) or default
    if not text.isdecimal() or int(text) not in numbers:
        raise UserError(f"{variable}={text}: must be a whole number from {numbers[0]} to {numbers[-1]}, {meaning}")
    return int(text)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, however that ends (Linux). Not inherited by children."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this was said
        os.kill(os.getpid(), signal.SIGKILL)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for the next request, where the C library is glibc; elsewhere nothing happens.

    By default large blocks are mapped anew each time, and the kernel fills them with zeros before they are used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
