"""What a process asks of its operating system."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # names and numbers of malloc.h


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends (Linux). Not inherited by children."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for the next request, where the C library is glibc; elsewhere nothing happens.

    By default large blocks are mapped anew each time, and the kernel fills them with zeros before they are used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
