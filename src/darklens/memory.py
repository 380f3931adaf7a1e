"""Keeping freed memory for the next step or image."""

import ctypes
import sys

# mallopt's names from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_RETURN, _LARGEST_KEPT = 2**31 - 1, 2**30


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks rather than return them to the system; elsewhere do nothing.

    A training step, or an image, frees and asks again for the same large arrays. Returning them costs page faults:
    without this a training step took 1.3 to 2.8 times as long on 2 cores (docs/decisions/0003-threads-and-memory.md).
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_M_TRIM_THRESHOLD, _NEVER_RETURN)
