"""lens_residual through the command line: train, judge, classify files with maps; and the model that is shipped."""

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import darklens, rows_of

from darklens import populations
from darklens.bundle import Bundle
from darklens.data.store import Store
from darklens.fit.features import MAP_NAMES
from darklens.locate import DEFAULT_MODEL, shipped
from darklens.simulate.batch import simulate_batch

SMALL = ["field.n_pixels=72", "--n-per-class"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "common-test-i"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    assert darklens("simulate", "common-test-i", "--out", work / "train", *SMALL, 8, "--seed", 1) == 0
    assert darklens("simulate", "common-test-i", "--out", work / "files", *SMALL, 1, "--format", "deeplense") == 0
    few = ["model.overrides=[field.n_pixels=72]", "model.width=8", "stages.0.epochs=20", "stages.0.batch_size=8"]
    assert darklens("train", "lens_residual", *few, "--data", work / "train", "--out", work / "run") == 0
    return work


def test_it_is_trained_judged_and_reported(work):
    assert darklens("simulate", "common-test-i", "--out", work / "test", *SMALL, 5, "--seed", 2) == 0
    assert darklens("evaluate", work / "run", work / "test", "--out", work / "judged") == 0
    found = json.loads((work / "judged" / "eval.json").read_text())
    assert found["auc"]["macro"]["value"] > 0.9  # 21 images of training
    judged = rows_of(work / "judged" / "predictions.csv")
    bundle, images = Bundle.load(work / "run"), Store(work / "test").images(range(5))
    assert [row["reason"] for row in judged[:5]] == ["; ".join(reasons) for reasons in bundle.classify(images).doubts]
    page = (work / "judged" / "report.html").read_text()
    assert "Lens fits" in page
    contract = Bundle.load(work / "run").contract
    assert contract.model.population.field.n_pixels == 72
    assert contract.provenance["train_images"] == 21


def test_files_get_what_was_found_and_maps(work, tmp_path):
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no image")
    some = sorted((work / "files").rglob("1.npy"))
    table, maps = tmp_path / "t.csv", tmp_path / "maps"
    assert darklens("predict", work / "run", *some, bad, "--out", table, "--maps", maps) == 3
    rows = rows_of(table)
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["error"]
    assert [row["fit"] for row in rows] == ["ok"] * 3 + [""]
    assert all(0.5 < float(row["theta_E"]) < 2 for row in rows[:3])
    found = np.load(maps / "no-1.npz")
    assert all(found[name].shape == (36, 36) for name in MAP_NAMES) and found["pixel_scale"] == pytest.approx(0.1)
    assert (maps / "no-1.png").read_bytes().startswith(b"\x89PNG")


def test_an_elliptical_lens_with_light_is_classified_by_the_fallback(tmp_path):
    light = "{kind: sersic, amplitude: 20, R_e: 0.5, n: 3, q: 0.8, angle: 0, position: {kind: cartesian, x: 0, y: 0}}"
    population = populations.get("common-test-i", ["lens.e1=0.06", f"lens_light={light}"])
    images, _ = simulate_batch(population, 5, range(3))
    files = [tmp_path / f"{name}.npy" for name in population.class_names]
    for file, image in zip(files, images, strict=True):
        np.save(file, image[0])
    table, maps = tmp_path / "t.csv", tmp_path / "maps"
    assert darklens("predict", *files, EXAMPLES / "vort/1.npy", "--out", table, "--maps", maps) == 0
    *rows, example = rows_of(table)
    assert [row["verdict"] for row in rows] == [row["predicted"] for row in rows] == ["no", "sphere", "vort"]
    assert {row["model"] for row in rows} == {"lens_residual_robust"} and all(row["fallback_reason"] for row in rows)
    assert example["model"] == "lens_residual" and example["fallback_reason"] == ""
    assert sorted(path.name for path in maps.glob("*.npz")) == ["1.npz", "no.npz", "sphere.npz", "vort.npz"]
    assert darklens("predict", *files, "--out", tmp_path / "alone.csv", "--no-fallback") == 0
    alone = rows_of(tmp_path / "alone.csv")
    assert [row["verdict"] for row in alone] == ["unknown"] * 3 and "model" not in alone[0]


def test_onnx_is_refused_in_a_sentence(work, tmp_path, capsys):
    assert darklens("export", work / "run", "--onnx", tmp_path / "m.onnx") == 2
    assert "ONNX cannot express" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], [DEFAULT_MODEL]])
def test_the_shipped_model_classifies_without_training(words, tmp_path):
    assert darklens("predict", *words, EXAMPLES, "--out", tmp_path / "t.csv") == 0
    rows = rows_of(tmp_path / "t.csv")
    assert [row["predicted"] for row in rows] == [Path(row["path"]).parent.name for row in rows]
    assert len(rows) == 3


def test_every_shipped_model_loads_and_says_what_it_is(capsys):
    assert DEFAULT_MODEL in shipped()
    assert darklens("models") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name in shipped():
        assert Bundle.load(name).contract.pixel_scale == 0.05
        assert name in printed


def test_a_model_that_is_not_there_is_named_with_those_that_are(tmp_path, capsys):
    assert darklens("predict", "no-such-model", tmp_path / "x.npy", "--out", tmp_path / "t.csv") == 2
    assert DEFAULT_MODEL in capsys.readouterr().err
