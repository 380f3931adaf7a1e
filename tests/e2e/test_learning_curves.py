"""tools/learning_curves.py on a few small images: it trains, evaluates, compares and draws."""

import json

import learning_curves
import pytest
import yaml

from darklens import populations


def test_curves_are_made_and_trainings_kept(tmp_path, monkeypatch, capsys):
    small = populations.get("common-test-i", ["field.n_pixels=64"]).model_dump(mode="json", by_alias=True)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small | {"name": "small"}))
    wanted = {name: learning_curves.SYSTEMS[name] for name in ("lens_residual", "its numbers alone")}
    monkeypatch.setattr(learning_curves, "SYSTEMS", wanted)
    words = ["--population", str(tmp_path / "small.yaml"), "--backend", "eager", "--epochs", "2", "--seeds", "1"]
    words += ["--sizes", "6", "--resnet-sizes", "--test-per-class", "4"]
    words += [word for name in ("stores", "runs", "out") for word in (f"--{name}", str(tmp_path / name))]
    monkeypatch.setattr("sys.argv", ["learning_curves", *words])
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
