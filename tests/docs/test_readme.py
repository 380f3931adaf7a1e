"""What the README shows works: its Python runs, its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from darklens.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SYSTEMS = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}\.venv/bin/darklens (.+)$", README + SYSTEMS, flags=re.MULTILINE)
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    # Folders with an underscore are written by `make docs`.
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md") if "/_" not in p.relative_to(ROOT).as_posix()),
]


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 6


def run_block_of(page):
    """What the only block of Python of a page leaves behind."""
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    exec(block, names)
    return names


def test_the_ten_lines_of_the_readme_tell_the_examples_apart(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = run_block_of(README)
    classes = names["model"].contract.classes
    assert [classes[i] for i in names["probabilities"].argmax(1)] == [file.parent.name for file in names["files"]]
    assert names["probabilities"].sum(1) == pytest.approx(1) and len(capsys.readouterr().out.splitlines()) == 3
    assert all(0.7 < radius < 1.9 for radius in names["theta_E"].tolist())


def test_physics_is_differentiable_as_shown():
    names = run_block_of(SYSTEMS)
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
