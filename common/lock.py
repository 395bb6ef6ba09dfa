"""A lock file that one process at a time holds; the lock ends with the process, however that ends."""

import errno
import os
import sys
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without locks answers


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
            busy(_holder(path))
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


def _holder(path: Path) -> str:
    text = ""
    with suppress(OSError):  # it may end just now
        text = path.read_text().strip()
    return text or "another process"
