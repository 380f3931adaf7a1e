"""The ablation's tool on a few small images: what it writes, and that it does nothing twice."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from darklens.cli import main

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "ablation.py"
KEPT = ("no lens step", "k in arcsec, learnt", "gather instead of splat (wrong)")


@pytest.fixture
def ablation(monkeypatch, tmp_path):
    """Return a function that runs the tool with three variants, in this process, and lists its commands."""

    def run():
        calls = []

        def darklens(*words):
            calls.append(words[:2])
            with pytest.raises(SystemExit) as stopped:
                main(list(words))
            assert stopped.value.code == 0

        tool = runpy.run_path(str(TOOL))
        shared = tool["main"].__globals__
        shared["darklens"] = darklens
        shared["VARIANTS"] = {name: tool["VARIANTS"][name] for name in KEPT}
        shared["PAIRS"] = [pair for pair in tool["PAIRS"] if set(pair) <= set(KEPT)]
        sizes = ["--n-per-class", "12", "--test-per-class", "8", "--seeds", "2", "--epochs", "1"]
        place = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        small = ["--override", "field.n_pixels=64", "--crop", "48", "--bin", "1", "--reconstruction-epochs", "1"]
        monkeypatch.setattr(sys, "argv", ["ablation.py", *sizes, *small, *place])
        shared["main"]()
        return calls

    return run


def test_it_writes_a_table_numbers_and_a_figure_and_repeats_nothing(ablation, tmp_path):
    calls = ablation()
    assert [words[0] for words in calls].count("train") == 6 and [words[0] for words in calls].count("evaluate") == 6
    out = tmp_path / "out"
    found = json.loads((out / "ablation.json").read_text())
    assert [v["name"] for v in found["variants"]] == list(KEPT)
    assert all(len(v["macro_auc"]) == 2 for v in found["variants"])
    assert {(d["first"], d["second"]) for d in found["differences"]} >= {(KEPT[1], KEPT[0]), (KEPT[2], KEPT[1])}
    for d in found["differences"]:
        assert d["auc"]["ci95"][0] <= d["auc"]["value"] + 1e-9 and d["auc"]["value"] <= d["auc"]["ci95"][1] + 1e-9
    table = (out / "ablation.md").read_text()
    assert all(name in table for name in KEPT) and "2 seeds" in table
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "runs" / "no-lens-step" / "seed1" / "test" / "eval.json").unlink()
    assert ablation() == [("evaluate", str(tmp_path / "runs" / "no-lens-step" / "seed1"))]
    assert json.loads((out / "ablation.json").read_text()) == found
