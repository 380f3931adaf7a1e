"""`darklens doctor` and `darklens explain` through the command line."""

import json

import numpy as np
import pytest
import yaml
from commandline import darklens
from tiny import N

from darklens import populations

SIS = "sis_autoencoder2"
SMALL = ["field.n_pixels=64", "--n-per-class", "30"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Stores without and with a leak."""
    work = tmp_path_factory.mktemp("doctor")
    tree = populations.get("common-test-i").model_dump(mode="json", by_alias=True)
    smooth = tree | {"name": "smooth", "classes": {key: {"kind": "none"} for key in tree["classes"]}}
    (work / "smooth.yaml").write_text(yaml.safe_dump(smooth))
    heavy = tree | {"name": "heavy"}
    heavy["classes"] = tree["classes"] | {"vort": tree["classes"]["vort"] | {"mass_fraction": 0.9}}
    (work / "heavy.yaml").write_text(yaml.safe_dump(heavy))
    for name, seed in (("smooth", 1), ("heavy", 2)):
        assert darklens("simulate", work / f"{name}.yaml", "--out", work / name, *SMALL, "--seed", seed) == 0
    return work


def test_a_clean_store_is_one_sentence(work, tmp_path, capsys):
    assert darklens("doctor", work / "smooth", "--out", tmp_path / "r.json") == 0
    output = capsys.readouterr()
    assert output.err == "" and output.out.startswith("90 images without duplicates; none of 12 statistics")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == 1 and report["warnings"] == [] and report["duplicates"]["n"] == 0
    assert {leak["class"] for leak in report["leaks"]} == {"no", "sphere", "vort"}


def test_a_leak_is_reported_with_its_strength_and_a_remedy(work, tmp_path, capsys):
    assert darklens("doctor", work / "heavy", "--out", tmp_path / "r.json") == 3
    output = capsys.readouterr()
    line = next(line for line in output.err.splitlines() if "ring radius" in line)
    assert line.startswith("Warning: The ring radius is larger in vort than in other classes (AUC 0.9")
    assert "conserve_mass=true" in line
    assert f"{len(output.err.splitlines())} warnings on 90 images" in output.out
    leak = next(leak for leak in json.loads((tmp_path / "r.json").read_text())["leaks"] if leak["found"])
    low, high = leak["auc"]["ci95"]
    assert 0.5 < low <= leak["auc"]["value"] <= high <= 1


def test_splits_that_share_images(work, tmp_path, capsys):
    longer = ["field.n_pixels=64", "--n-per-class", "35", "--seed", "1"]
    assert darklens("simulate", work / "smooth.yaml", "--out", tmp_path / "train", *longer) == 0
    capsys.readouterr()
    assert darklens("doctor", work / "smooth", "--against", tmp_path / "train", "--against", work / "heavy") == 3
    err = capsys.readouterr().err
    assert f"90 images are shared with {tmp_path / 'train'}, 90 byte for byte" in err
    assert "same seed (1), so it has the same images" in err and len(err.splitlines()) == 2


def test_the_installation(tmp_path, capsys):
    assert darklens("doctor") == 0
    out = capsys.readouterr().out
    assert "torch" in out and "alpha = grad psi" in out and "FAILED" not in out
    assert darklens("doctor", "--out", tmp_path / "r.json") == 2
    assert "need a store; give it as the first argument" in capsys.readouterr().err
    assert darklens("doctor", tmp_path) == 2


def test_explain_writes_numbers_and_a_picture_of_an_image(tiny, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("darklens.evaluation.explain._STEPS", (8,))  # the integral is tested in test_explain.py
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no image")
    lens = tiny / "files" / "no" / "1.npy"
    assert darklens("explain", tiny / SIS, lens, bad, "--out", tmp_path / "why", "--label", "vort") == 3
    assert "bad.npy" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "why").iterdir()) == ["1.npz", "1.png", "maps", "predictions.csv"]
    assert sorted(p.name for p in (tmp_path / "why" / "maps").iterdir()) == ["1.npz", "1.png"]
    arrays = np.load(tmp_path / "why" / "1.npz")
    assert arrays["attribution"].shape == (1, N, N) and arrays["classes"][arrays["label"]] == "vort"
    assert np.isfinite(arrays["attribution"]).all() and arrays["attribution"].any()
    again = ["explain", tiny / "resnet_simple", lens, "--out"]
    assert darklens(*again, tmp_path / "o", "--method", "occlusion") == 0
    assert str(np.load(tmp_path / "o" / "1.npz")["method"]) == "occlusion"
    assert darklens(*again, tmp_path / "why") == 2 and "not empty" in capsys.readouterr().err
    assert darklens(*again, tmp_path / "x", "--label", "axion") == 2
    assert "the classes of the model are no, sphere, vort, not axion" in capsys.readouterr().err
