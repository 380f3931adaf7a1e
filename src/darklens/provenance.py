"""Where a result came from: version, commit, hardware."""

import os
import platform
import subprocess
from pathlib import Path


def commit() -> str:
    """Return the git commit of the source tree, `unknown` outside a checkout.

    It ends in `-dirty` if a file that git knows was changed, but for those in results/, which are what runs write.
    """
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("-dirty" if _git("diff", "--name-only", "HEAD", "--", ":/", ":(top,exclude)results") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    git = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def hardware() -> str:
    """Return the processor, its core count, and the GPU if torch sees one."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"
