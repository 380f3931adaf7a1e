"""Calibration through the command line: after training, in tables, of ensembles, and again for older bundles."""

import json
import shutil

import numpy as np
import pytest
from commandline import darklens, rows_of
from tiny import TRAIN_PER_CLASS, N, simulate, training

from darklens.bundle import Bundle
from darklens.bundle.storage import OOD_REFERENCE
from darklens.data.store import Store, write_index, write_shard
from darklens.locate import CONTRACT

COLUMNS = ["set", "ood_score", "ood"]
RUN = "resnet_simple"


@pytest.fixture(scope="module")
def others(tiny, tmp_path_factory):
    """A run of another seed, and images to calibrate on."""
    others = tmp_path_factory.mktemp("others")
    assert darklens(*training(tiny, RUN, others / "run1", seed=1)) == 0
    simulate(others / "held-out", n_per_class=TRAIN_PER_CLASS, seed=3)
    return others


def write_many(store, path, *, times):
    """Write a store with each image repeated with new noise, which is much faster than a simulation."""
    images, labels = (np.repeat(array, times, axis=0) for array in (store.images(range(len(store))), store.labels))
    noise = np.random.default_rng(7).normal(0, 1, images.shape).astype(np.float32)
    shard = write_shard(path, 0, images + noise, {"label": labels})
    write_index(path, store.index.model_copy(update={"shards": [shard], "seed": 7}))


def test_a_training_calibrates_and_evaluate_reports_the_coverage(tiny, tmp_path):
    record = Bundle.load(tiny / RUN).contract.calibration
    assert record.temperature_images == 0 and record.threshold_images == 18  # 18 are too few for a temperature
    assert "validation" in record.images and (tiny / RUN / "bundle" / OOD_REFERENCE).exists()
    assert darklens("evaluate", tiny / RUN, tiny / "test", "--out", tmp_path / "e") == 0
    evaluation = json.loads((tmp_path / "e" / "eval.json").read_text())
    assert [row["level"] for row in evaluation["conformal"]] == [0.9, 0.95]
    assert 0.7 <= evaluation["conformal"][0]["lac"]["coverage"] <= 1
    assert evaluation["selective"][0]["confidence"] is None and 0 <= evaluation["ood"]["beyond_p99"] <= 1
    rows = rows_of(tmp_path / "e" / "predictions.csv")
    assert list(rows[0])[6:13] == ["message", "verdict", "reason", *COLUMNS, "label"]
    covered = np.mean([row["label"] in row["set"].split("|") for row in rows])
    assert covered >= evaluation["conformal"][0]["lac"]["coverage"]
    assert all(row["predicted"] in row["set"].split("|") for row in rows)
    report = (tmp_path / "e" / "report.html").read_text()
    assert (
        "Prediction sets and out-of-distribution score" in report
        and f"{evaluation['conformal'][1]['lac']['mean_size']:.3f}" in report
    )


def test_predict_flags_what_is_no_lens_and_leaves_bad_files_empty(tiny, tmp_path):
    stripe = np.zeros((N, N))
    stripe[:, 20:40] = 1
    np.save(tmp_path / "a_stripe.npy", stripe)
    np.save(tmp_path / "small.npy", np.eye(9))
    assert darklens("predict", tiny / RUN, tmp_path, "--out", tmp_path / "p.csv") == 3
    stripe, small = rows_of(tmp_path / "p.csv")
    assert stripe["ood"] == "yes" and float(stripe["ood_score"]) > 2 and stripe["set"]
    assert [small[name] for name in COLUMNS] == ["", "", ""]


def test_resuming_a_finished_run_calibrates_it_again_to_the_same_bytes(tiny, tmp_path):
    shutil.copytree(tiny / RUN, tmp_path / "run")
    bundle = tmp_path / "run" / "bundle"
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    (bundle / OOD_REFERENCE).unlink()
    contract = json.loads(before[CONTRACT])
    del contract["calibration"], contract["ood_sha256"]
    (bundle / CONTRACT).write_text(json.dumps(contract))
    settings = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(
        settings.replace("  n_per_class: null\n", "")
    )  # a setting added later
    assert Bundle.load(tmp_path / "run").contract.calibration is None
    assert darklens(*training(tiny, RUN, tmp_path / "run"), "--resume") == 0
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_an_ensemble_is_used_as_a_model_and_calibrated_on_new_images(tiny, others, tmp_path, capsys):
    runs, joint = [tiny / RUN, others / "run1"], tmp_path / "joint"
    assert darklens("ensemble", *runs, "--out", joint) == 0
    assert darklens("calibrate", joint, tiny / "train", "--out", tmp_path / "never") == 2
    assert "trained on" in capsys.readouterr().err and not (tmp_path / "never").exists()
    assert darklens("calibrate", joint, others / "held-out", "--out", tmp_path / "calibrated") == 0
    for model in (*runs, joint, tmp_path / "calibrated"):
        assert darklens("evaluate", model, tiny / "test", "--out", tmp_path / "of" / model.name) == 0
    rows = {path.name: rows_of(path / "predictions.csv") for path in (tmp_path / "of").iterdir()}
    for i, row in enumerate(rows["joint"]):
        mean = np.mean([float(rows[run.name][i]["p_vort"]) for run in runs])
        assert float(row["p_vort"]) == pytest.approx(mean, abs=1e-6)
    assert {row["set"] for row in rows["joint"]} == {""} and {row["ood"] for row in rows["joint"]} <= {"yes", "no"}
    assert "" not in {row["set"] for row in rows["calibrated"]}
    assert darklens("ensemble", runs[0], "--out", tmp_path / "one") == 2


def test_curves_need_enough_images_and_are_saved_in_the_bundle(tiny, others, tmp_path, capsys):
    few = ["calibrate", tiny / RUN, others / "held-out", "--out", tmp_path / "few", "--method", "isotonic"]
    assert darklens(*few) == 2 and "600 held-out images of each class" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
    write_many(Store(others / "held-out"), tmp_path / "many", times=25)
    words = [tiny / RUN, tmp_path / "many", "--out", tmp_path / "curved", "--method", "isotonic"]
    assert darklens("calibrate", *words) == 0
    bundle = Bundle.load(tmp_path / "curved")
    assert len(bundle.contract.calibration.curves) == 3
    assert darklens("evaluate", tmp_path / "curved", tiny / "test", "--out", tmp_path / "e") == 0
    assert darklens("ensemble", tmp_path / "curved", others / "run1", "--out", tmp_path / "both") == 2
    assert "takes a temperature alone" in capsys.readouterr().err
