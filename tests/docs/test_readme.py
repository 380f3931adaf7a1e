"""What the README shows works: its Python runs, its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from darklens.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}\.venv/bin/darklens (.+)$", README, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    # Folders with an underscore are written by `make docs`.
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md") if "/_" not in p.relative_to(ROOT).as_posix()),
]


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 6 and BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block):
    names = {}
    exec(block, names)
    names["beta_x"].sum().backward()
    assert names["theta_E"].grad.isfinite()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    words = shlex.split(command, comments=True)
    _, bound, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert bound.arguments


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
        assert ((ROOT / page).parent / target.split("#")[0]).exists(), target


def test_make_targets_that_are_shown_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"(?:^ {4}|`)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)
