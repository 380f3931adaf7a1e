"""Provenance of results: commit and hardware."""

import os
import platform
import subprocess
from pathlib import Path


def commit() -> str:
    """Return the git commit of the source tree, or `unknown` outside a checkout.

    The suffix `-dirty` marks changes to tracked files outside results/, where runs write.
    """
    try:
        sha = _git("rev-parse", "--short=12", "HEAD")
        return sha + ("-dirty" if _git("diff", "--name-only", "HEAD", "--", ":/", ":(top,exclude)results") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    git = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def hardware() -> str:
    """Return processor, number of cores, and GPU if torch finds one."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"
