"""What the README and its annex docs/systems.md show works: their Python runs, their commands are commands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from darklens.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SYSTEMS = (ROOT / "docs/systems.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}\.venv/bin/darklens (.+)$", README + SYSTEMS, flags=re.MULTILINE)
CLASSES = ("no", "sphere", "vort")
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    # Folders with an underscore are written by `make docs`.
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md") if "/_" not in p.relative_to(ROOT).as_posix()),
]


def only_block(text: str, language: str = "python") -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return block


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 10


def test_the_readme_classifies_its_examples_and_prints_what_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(only_block(README), names)
    probabilities = names["result"].probabilities
    assert probabilities.shape == (len(CLASSES), len(CLASSES))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    truth = [file.parent.name for file in names["files"]]
    assert [CLASSES[i] for i in probabilities.argmax(1)] == truth == list(CLASSES)
    printed, shown = capsys.readouterr().out, only_block(README, "text")
    number = r"\d+\.\d+"
    assert re.sub(number, "", printed) == re.sub(number, "", shown)
    # Fits end a little elsewhere on other processors.
    is_, said = (np.array(re.findall(number, text), float) for text in (printed, shown))
    np.testing.assert_allclose(is_, said, atol=0.01)


def test_ray_tracing_is_differentiable_as_shown():
    names = {}
    exec(only_block(SYSTEMS), names)
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
