"""Run darklens as a user would type it; the other tools are lists of such commands."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DARKLENS = Path(sys.executable).with_name("darklens")


def darklens(*words: str) -> None:
    run(str(DARKLENS), *words)


def run(*words: str) -> None:
    """Run a command at the repository's root; end with its exit code in a sentence where it fails."""
    print(f"\n$ {' '.join([Path(words[0]).name, *words[1:]])}", flush=True)
    finished = subprocess.run(words, cwd=ROOT, check=False)
    if finished.returncode:
        sys.exit(f"Stopped: that command ended with exit code {finished.returncode}. Start again to go on from here.")
