"""A lock file that one process at a time holds; the lock ends with the process, however that ends."""

import fcntl
import os
import sys
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path


@contextmanager
def locked(path, busy):
    """Hold the lock file `path` while the block runs; the file exists only as long as somebody holds it.

    `busy(holder)` is called when another process holds it, with a text that says which one: it may raise; when it
    returns, this process waits. A file system without locks is named on stderr, and the block runs without one.
    """
    path = Path(path)
    while True:
        with open(path, "a+") as file:
            try:
                if not _try_lock(file):
                    file.seek(0)
                    busy(file.read().strip() or "another process")
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                print(f"warning: {path}: this file system has no locks ({error.strerror}); make sure that nothing "
                      "else works there", file=sys.stderr)  # fmt: skip
            # The holder before us removed the file we waited for: a lock on it would keep nobody out.
            if not _is_at(file, path):
                continue
            try:
                file.truncate(0)
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                print(f"process {os.getpid()} on {os.uname().nodename} since {now}", file=file, flush=True)
                yield
            finally:
                if _is_at(file, path):  # not when its folder was set aside meanwhile
                    path.unlink()
            return


def _try_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file, path) -> bool:
    """Whether the open `file` is the one that `path` names now; one call of stat, so nothing gets in between."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
