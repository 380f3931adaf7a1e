"""What the README and its annex docs/systems.md show works: their Python runs, their commands are commands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from darklens.cli import app
from darklens.scene.specification import get as get_scene

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


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def only_block(text: str, language: str = "python") -> str:
    (block,) = blocks(text, language)
    return block


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 10


def test_the_readme_classifies_its_examples_and_prints_what_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(blocks(README)[2], names)
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


def test_the_readme_renders_a_lens_in_five_lines_and_fits_a_file_in_six(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    render, fit, _ = blocks(README)
    assert [sum(map(bool, block.splitlines())) for block in (render, fit)] == [5, 6]
    names = {}
    exec(render, names)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    exec(fit, names)
    result, observation = names["result"], names["observation"]
    residual = (observation.image - names["image"]) / observation.noise_map
    assert abs(residual.mean()) < 0.1 and abs(residual.std() - 1) < 0.05  # the image that the README simulates
    assert abs(result.theta_E - 1.2) < 4 * result.errors["epl.theta_E"] < 0.01
    assert re.fullmatch(r"theta_E = 1\.\d{4} \+- 0\.\d{4} arcsec True\n", capsys.readouterr().out)
    assert (tmp_path / "fit.png").exists() and names["kwargs"]["lens_model_list"] == ["EPL", "SHEAR"]
    for name in ("image", "noise_map", "psf"):
        (tmp_path / f"{name}.fits").symlink_to(ROOT / f"examples/lens/{name}.fits")
    (guide,) = blocks((ROOT / "docs/how-to/fit.md").read_text(encoding="utf-8"))
    exec(guide, names)
    assert names["result"].theta_E > 1.1 and (tmp_path / "fit.json").exists()


def test_the_scene_of_the_guide_to_fits_is_a_scene(tmp_path):
    (text,) = blocks((ROOT / "docs/how-to/fit.md").read_text(encoding="utf-8"), "yaml")
    (tmp_path / "scene.yaml").write_text(text)
    assert get_scene(str(tmp_path / "scene.yaml")).half_width == 3
    guide = (ROOT / "docs/how-to/fit.md").read_text(encoding="utf-8")
    overrides = [text.replace("'", "") for text in re.findall(r"`([a-z._A-Z0-9]+=[^`]+)`", guide)]
    assert len(overrides) >= 10
    for override in overrides:
        if override not in ("KEY=VALUE",):
            get_scene("epl-shear+light", [override])


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
