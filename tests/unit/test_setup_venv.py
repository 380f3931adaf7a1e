"""The set-up leaves a torch that is good enough alone."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent.parent / "tools" / "setup_venv.py"
spec = importlib.util.spec_from_file_location("setup_venv", PATH)
setup_venv = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_venv)


def python_with(tmp_path, torch_version):
    """Return a stand-in for a Python whose torch has this version, or that has none."""
    script = tmp_path / "python"
    answer = f"echo {torch_version}" if torch_version else "exit 1"
    script.write_text(f"#!/bin/sh\n{answer}\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("2.13.0+cpu", True),
        ("2.10.1+cu128", True),
        ("2.6.0", True),
        ("2.5.1+cu124", False),
        ("1.13.1", False),
        (None, False),
    ],
)
def test_only_an_old_or_missing_torch_is_replaced(tmp_path, version, good):
    assert setup_venv.torch_satisfies(python_with(tmp_path, version)) == good


def test_this_environment_has_what_it_needs():
    assert setup_venv.torch_satisfies(Path(sys.executable))
