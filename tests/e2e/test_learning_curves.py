"""tools/learning_curves.py on a few images: it trains, judges, compares and draws."""

import json

import learning_curves
import pytest


def test_curves_are_made_and_trainings_kept(tmp_path, monkeypatch, capsys):
    wanted = {name: learning_curves.SYSTEMS[name] for name in ("lens_residual", "its numbers alone")}
    monkeypatch.setattr(learning_curves, "SYSTEMS", wanted)
    small = ["--sizes", "6", "--resnet-sizes", "--seeds", "1", "--test-per-class", "4", "--epochs", "2"]
    places = [w for name in ("stores", "runs", "out") for w in (f"--{name}", str(tmp_path / name))]
    monkeypatch.setattr("sys.argv", ["learning_curves", *small, "--backend", "eager", *places])
    learning_curves.main()
    found = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert [row["system"] for row in found["rows"]] == [*wanted, learning_curves.LOGISTIC]
    assert all(0 <= row["auc"]["macro"]["value"] <= 1 for row in found["rows"])
    (difference,) = found["differences"]
    first, second = (row["auc"]["macro"]["value"] for row in found["rows"][:2])
    assert difference["auc"]["value"] == pytest.approx(first - second, abs=1e-9)
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| lens_residual |" in (tmp_path / "out" / "curves.md").read_text()
    bundles = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("bundle.json")}
    learning_curves.main()
    assert {p: p.stat().st_mtime_ns for p in bundles} == bundles
