"""Reuse of freed memory."""

import ctypes
import sys

# parameters of mallopt, from malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_TRIM, _MAX_REUSED_BLOCK = 2**31 - 1, 2**30


def keep_freed_memory() -> None:
    """Make glibc reuse freed blocks instead of returning them to the system; no effect with other C libraries.

    Each training step or image allocates and frees the same large arrays. Returning them causes page faults, which made
    a training step 1.3 to 2.8 times as long on 2 cores (docs/decisions/0003-threads-and-memory.md).
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return
    mallopt(_M_MMAP_THRESHOLD, _MAX_REUSED_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
