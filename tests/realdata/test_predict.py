"""The nine exact real images go through import and prediction."""

import csv

import pytest
from commandline import darklens

pytestmark = pytest.mark.realdata


def test_real_images_are_classified(realdata, tmp_path):
    files = [realdata / "common-test-i" / name / f"{i}.npy" for name in ("no", "sphere", "vort") for i in (1, 2, 3)]
    assert darklens("simulate", "common-test-i", "--out", tmp_path / "s", "--n-per-class", 10) == 0
    quick = ["stages.0.epochs=1", "data.preprocess.crop=84", "--data", tmp_path / "s", "--out", tmp_path / "r"]
    assert darklens("train", "resnet_simple", *quick) == 0
    assert darklens("predict", tmp_path / "r", *files, "--out", tmp_path / "p.csv", "--pixel-scale", 0.05) == 0
    with (tmp_path / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [str(f) for f in files]
    assert all(row["status"] == "ok" for row in rows)


def test_the_whole_folder_imports(realdata, tmp_path, capsys):
    assert darklens("import", realdata / "common-test-i", "--out", tmp_path / "s") == 0
    assert darklens("inspect", tmp_path / "s", "--verify") == 0
    assert "no: 23, sphere: 23, vort: 23" in capsys.readouterr().out
