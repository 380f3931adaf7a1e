"""What the documentation is made of works: cards are up to date, cells are understood, formulas can be drawn."""

import re
import shlex
import sys
from pathlib import Path

import cards
import numpy as np
import pytest

from darklens.bundle import Bundle
from darklens.cli import app
from darklens.cli import main as command
from darklens.data.store import Store
from experiments import results

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "_ext"))

import generated_pages  # noqa: E402
import mathtext_math  # noqa: E402
import repository_links  # noqa: E402

PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "/_" not in p.relative_to(ROOT).as_posix()]
CELLS = [
    pytest.param(page.name, cell, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, cell in enumerate(
        re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    )
]
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\w$\\`])\$([^$\n`]+)\$", re.DOTALL)


def test_cards_are_those_of_the_results_that_are_kept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cards.py", "--check"])
    cards.main()


def test_a_card_that_was_changed_by_hand_is_noticed(monkeypatch, tmp_path):
    import shutil

    shutil.copytree(DOCS / "cards", tmp_path / "cards")
    monkeypatch.setattr(cards, "CARDS", tmp_path / "cards")
    page = tmp_path / "cards/models/lens_residual.md"
    page.write_text(page.read_text(encoding="utf-8").replace("0.99", "0.98"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["cards.py", "--check"])
    with pytest.raises(SystemExit, match=r"models/lens_residual\.md"):
        cards.main()
    monkeypatch.setattr(sys, "argv", ["cards.py"])
    cards.main()
    assert page.read_text(encoding="utf-8") == (DOCS / "cards/models/lens_residual.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "cell"), CELLS)
def test_cells_are_understood(page, cell):
    """Python compiles, YAML is YAML, and each call of `darklens` is a command with its options."""
    body = re.sub(r"^:tags:.*\n+", "", cell)
    if body.startswith("%%writefile"):
        name, body = body.removeprefix("%%writefile ").split("\n", 1)
        assert len(body.splitlines()) < 30
        if name.endswith(".yaml"):
            import yaml

            assert yaml.safe_load(body)
            return
    if body.startswith("%%bash"):
        calls = re.findall(r"darklens ([^|;\n]+)", re.sub(r"\$(\w+)", r"\1", body))
        assert calls
        for call in (re.sub(r"\d>&\d", "", one) for one in calls):
            app.parse_args(shlex.split(call), exit_on_error=False, print_error=False)
        return
    compile(body, page, "exec")


def test_there_are_notebooks():
    assert len({page for page, _ in (cell.values for cell in CELLS)}) >= 10


def test_formulas_can_be_drawn():
    found = 0
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for block, inline in _FORMULA.findall(text):
            for row in (block or inline).split(r"\\"):
                assert "<path" in mathtext_math.svg(row), (page, row)
                found += 1
    assert found > 30


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[t](../results/README.md)", "[t](/_generated/results/README.md)"),
        ("![](../results/common-test-i/learning_curves/curves.png)", "(/_generated/results/common-test-i/"),
        ("[t](../src/darklens/populations/common-test-i.yaml)", "reference/populations.md#common-test-i)"),
        ("[t](../src/darklens/recipes)", "[t](/_generated/reference/recipes.md)"),
        ("[`x`](../CONTRIBUTING.md)", "[`x`](/_generated/contributing.md)"),
        ("[t](physics.md#fits)", "[t](/physics.md#fits)"),
        ("[t](../benchmarks/run.py)", "t (`benchmarks/run.py`)"),
        ("[t](https://example.org/x)", "[t](https://example.org/x)"),
        ("[t](#here)", "[t](#here)"),
        ("```\n[t](../results/README.md)\n```", "[t](../results/README.md)"),
    ],
)
def test_links_that_leave_the_folder_lead_to_pages(link, expected):
    assert expected in repository_links.rewritten(link, "docs/page.md")


def test_reference_pages_name_everything():
    page = generated_pages.command_line()
    for name in ("simulate", "train", "predict", "doctor", "config show"):
        assert f"darklens {name}" in page
    page = generated_pages.architecture()
    for module in ("darklens.cli", "darklens.physics", "darklens.errors", "darklens.predict"):
        assert f"| `{module}` | " in page
    pages = generated_pages.yaml_pages()
    assert (
        "## lens_residual" in pages["reference/recipes.md"] and "## realistic-hst" in pages["reference/populations.md"]
    )


def test_the_table_of_results_is_made_of_what_lies_below_it():
    assert (results.RESULTS / "README.md").read_text(encoding="utf-8") == results.page()


def test_the_guide_to_a_loop_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "how-to/own-loop.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert len(capsys.readouterr().out.splitlines()[-3:]) == 3
    before, after = Bundle.load("runs/small"), Bundle.load("runs/small/changed")
    images = Store(Path("stores/small")).images([0])
    assert not np.array_equal(before.probabilities(images), after.probabilities(images))


def test_the_guide_to_a_measured_psf_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "how-to/custom-psf.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    with pytest.raises(SystemExit) as ended:
        command(["import", "labelled", "--out", "stores/own-psf", "--pixel-scale", "0.05"])
    assert ended.value.code == 0
    assert np.bincount(Store(Path("stores/own-psf")).labels).tolist() == [2, 2, 2]


def test_the_guide_to_scenes_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "how-to/scenes.md").read_text(encoding="utf-8"), re.S)
    names = {}
    exec(block, names)
    assert capsys.readouterr().out.startswith("theta_E = ")
    assert abs(names["result"].theta_E - 1) < 0.02
    assert names["result"].converged


@pytest.mark.sweep  # five searches: ten times as long as all other pages together
def test_the_tutorial_on_a_search_finds_the_subhalo_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for cell in (v for page, v in (c.values for c in CELLS) if page == "6-find-a-subhalo.md"):
        exec(cell.replace("from IPython.display import Image\n", "Image = str\n"), names)  # IPython is not required
    lines = [line for line in capsys.readouterr().out.splitlines() if "detected:" in line]
    assert [line.split("detected: ")[1].strip() for line in lines] == ["True", "False", "True", "False", "True"]
