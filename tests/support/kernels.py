"""Where the kernels must be built: a test that they are not is a failure there, not one to leave out."""

import os
import shutil
import sys
from pathlib import Path


def must_build():
    """Return whether this is Linux on a processor with AVX2 that has a compiler, or was promised one."""
    if not sys.platform.startswith("linux"):
        return False
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return {"avx2", "fma"} <= flags and ("CI" in os.environ or shutil.which("g++") is not None)
