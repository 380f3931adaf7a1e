"""Make .venv and install darklens in it: `python tools/setup_venv.py [extra ...]`.

torch comes first and pinned, so that no other package pulls another build. A torch that the calling Python already
has, such as a CUDA build, is used as it is if it satisfies the bound in pyproject.toml. Everything else is held to
constraints.txt. Needs Python 3.11 or newer and nothing else.
"""

import hashlib
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PINNED_TORCH = "torch==2.13.0"


def main(extras: list[str]) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this is where an older Python is told so
        sys.exit("darklens needs Python 3.11 or newer; call make with PYTHON=python3.12, for example.")
    stamp = VENV / f".installed-{'-'.join(['core', *extras])}"
    wanted = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        wanted.update((ROOT / name).read_bytes())
    if stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return
    print(f"Installing darklens in {VENV} (two to four minutes) ...", flush=True)
    own_torch = torch_satisfies(Path(sys.executable))
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True, system_site_packages=own_torch)
    if not torch_satisfies(PYTHON):
        pip(PINNED_TORCH)
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    pip("--constraint", str(ROOT / "constraints.txt"), "--editable", target)
    stamp.write_text(wanted.hexdigest())


def torch_satisfies(python: Path) -> bool:
    """Tell whether this Python has a torch within pyproject.toml's bound, without importing it."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = next(d for d in dependencies if d.startswith("torch>=")).removeprefix("torch>=")
    code = "from importlib.metadata import version; print(version('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode:
        return False
    return numbers(found.stdout.strip()) >= numbers(lowest)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def pip(*arguments: str) -> None:
    # Python compiles what it imports; compiling every module of every package takes longer than the rest of the set-up.
    quiet = ["--quiet", "--no-compile", "--disable-pip-version-check"]
    finished = subprocess.run([PYTHON, "-m", "pip", "install", *quiet, *arguments], check=False)
    if finished.returncode:
        sys.exit(f"Installing {' '.join(arguments)} failed; see pip's message above.")


if __name__ == "__main__":
    main(sys.argv[1:])
