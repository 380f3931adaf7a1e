"""Scripts outside the package: each can be imported, so that no renamed or deleted module breaks a command of make."""

import runpy
from pathlib import Path

import pytest
from mutate import MUTANTS

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_finds_all_that_it_imports(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="imported")


def test_every_mutant_changes_one_line_that_exists():
    source = ROOT / "src/darklens"
    counts = {(file, text): (source / file).read_text(encoding="utf-8").count(text) for file, text, *_ in MUTANTS}
    assert {mutant: n for mutant, n in counts.items() if n != 1} == {}


def test_the_fuzzer_accepts_the_files_that_it_mutates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which `readers` changes
    tool = runpy.run_path(str(ROOT / "tools" / "fuzz_readers.py"), run_name="imported")
    files = tool["seeds"]()
    for kind, read in tool["readers"](tmp_path, files).items():
        for content in files[kind]:
            path = tmp_path / tool["NAMES"].get(kind, "input")
            path.write_bytes(content)
            read(path)
