"""The main workflow on the command line with few small images, and its errors."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commandline import darklens, rows_of
from matplotlib.image import imread
from spawning import prepared_processes
from tiny import CROP, TRAIN_PER_CLASS, N, simulate, training

from darklens.cli import main

AUTOENCODER = "autoencoder_resnet_simple"
SYSTEMS = ("resnet_simple", "sis_autoencoder2", AUTOENCODER)


@pytest.fixture(scope="module")
def work(tiny, tmp_path_factory):
    """A folder with the evaluations of three systems, and the run of one of them, which does not classify."""
    work = tmp_path_factory.mktemp("work")
    words = [f"data.preprocess.crop={CROP}", "stages.0.epochs=1", "--data", tiny / "train", "--out", work / AUTOENCODER]
    assert darklens("train", AUTOENCODER, *words) == 0
    for recipe in SYSTEMS:
        run = (work if recipe == AUTOENCODER else tiny) / recipe
        assert darklens("evaluate", run, tiny / "test", "--out", work / f"{recipe}-test") == 0
    return work


@pytest.fixture
def images(tiny, tmp_path):
    """A DeepLense folder of fresh images, which the test may change."""
    return shutil.copytree(tiny / "files", tmp_path / "d")


@pytest.mark.parametrize("recipe", ["resnet_simple", "sis_autoencoder2"])
def test_an_evaluation_contains_the_documented_entries(work, recipe):
    out = work / f"{recipe}-test"
    files = {"eval.json", "curves.json", "predictions.csv", "roc.png", "calibration.png", "report.html"}
    assert files <= {p.name for p in out.iterdir()}
    evaluation = json.loads((out / "eval.json").read_text())
    assert evaluation["schema"] == 1 and evaluation["n"] == 36 and evaluation["classes"] == ["no", "sphere", "vort"]
    for metric in (evaluation["accuracy"], evaluation["ece"], evaluation["nll"], *evaluation["auc"].values()):
        assert sorted(metric) == ["ci95", "value"] and metric["ci95"][0] <= metric["ci95"][1]
    assert sorted(evaluation["auc"]) == sorted(evaluation["legacy_auc"]) == ["macro", "no", "sphere", "vort"]
    assert np.sum(evaluation["confusion"]) == 36
    assert sorted(evaluation["recall"]) == sorted(evaluation["average_precision"]) == ["macro", "no", "sphere", "vort"]
    assert (
        evaluation["brier"]["value"] > 0 and evaluation["aurc"]["value"] > 0 and evaluation["strata"] == []
    )  # too few images
    assert evaluation["provenance"]["seed"] == 0 and list(evaluation["risk_at_coverage"]) == [
        "0.5",
        "0.8",
        "0.9",
        "0.95",
    ]
    assert list(json.loads((out / "curves.json").read_text())["roc"]) == evaluation["classes"]
    assert evaluation["model"]["recipe"] == recipe and evaluation["model"]["parameters"] > 1e5
    assert evaluation["data"]["population"] == "common-test-i" and evaluation["data"]["seed"] == 2
    assert evaluation["provenance"]["train_images"] == 36 and evaluation["provenance"]["train_seconds"] > 0
    assert evaluation["warnings"] == []
    rows = rows_of(out / "predictions.csv")
    fixed = ["path", "status", "predicted", "p_no", "p_sphere", "p_vort", "message"]
    assert list(rows[0]) == [*fixed, "verdict", "reason", "set", "ood_score", "ood", "label"]
    assert len(rows) == 36
    for row in rows:
        p = {name: float(row[f"p_{name}"]) for name in evaluation["classes"]}
        assert row["status"] == "ok" and sum(p.values()) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(p, key=p.get)
    right = sum(row["predicted"] == row["label"] for row in rows) / 36
    assert right == pytest.approx(evaluation["accuracy"]["value"])


def test_reports_are_single_files(work):
    for recipe in SYSTEMS:
        html = (work / f"{recipe}-test" / "report.html").read_text()
        written = re.sub(r'"data:[^"]*"', "", html)  # base64 may hold any letters
        assert "http" not in written and not re.search(r'(src|href)="(?!data:)', html)
        assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", html))
        assert "Learning curves" in html and "Provenance" in html


def test_an_autoencoder_is_evaluated_by_reconstruction_and_does_not_classify(work, images, capsys):
    evaluation = json.loads((work / f"{AUTOENCODER}-test" / "eval.json").read_text())
    assert evaluation["reconstruction"]["mse"]["value"] > 0 and "auc" not in evaluation
    table = work / "never.csv"
    assert darklens("predict", work / AUTOENCODER, images, "--out", table) == 2
    assert "does not classify" in capsys.readouterr().err
    assert not table.exists()


def test_evaluating_on_the_training_images_warns(tiny, tmp_path, capsys):
    assert darklens("evaluate", tiny / "resnet_simple", tiny / "train", "--out", tmp_path / "e") == 0
    assert "trained on" in capsys.readouterr().err
    assert "trained on" in (tmp_path / "e" / "report.html").read_text()


def test_a_longer_simulation_with_the_training_seed_warns_too(tiny, tmp_path):
    simulate(tmp_path / "s", n_per_class=TRAIN_PER_CLASS + 3, seed=1)
    assert darklens("evaluate", tiny / "resnet_simple", tmp_path / "s", "--out", tmp_path / "a") == 0
    assert darklens("evaluate", tiny / "sis_autoencoder2", tmp_path / "s", "--out", tmp_path / "b") == 0
    assert len(json.loads((tmp_path / "a" / "eval.json").read_text())["warnings"]) == 1
    assert darklens("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c") == 0
    report = (tmp_path / "c" / "report.html").read_text()
    assert report.count('class="warning"') == 2 and "none of them was trained on" not in report


def test_two_runs_of_one_recipe_have_different_names(work, tmp_path):
    first, second = work / "resnet_simple-test", tmp_path / "again"
    shutil.copytree(first, second)
    assert darklens("compare", first, second, "--out", tmp_path / "c") == 0
    names = [s["name"] for s in json.loads((tmp_path / "c" / "compare.json").read_text())["systems"]]
    assert names == ["resnet_simple (resnet_simple-test)", "resnet_simple (again)"]
    for damage in ("label", "vort", "0."):
        text = (first / "predictions.csv").read_text()
        (second / "predictions.csv").write_text(text.replace(damage, "x"))
        assert darklens("compare", first, second, "--out", tmp_path / "d") == 2
    assert not (tmp_path / "d").exists()


def test_compare(work, tmp_path):
    folders = [work / "resnet_simple-test", work / "sis_autoencoder2-test"]
    assert darklens("compare", *folders, "--out", tmp_path / "c") == 0
    comparison = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [s["name"] for s in comparison["systems"]] == ["resnet_simple", "sis_autoencoder2"]
    assert len(comparison["differences"]) == 1
    assert 0 <= comparison["differences"][0]["delong"]["macro"]["p"] <= 1
    assert "resnet_simple - sis_autoencoder2" in (tmp_path / "c" / "compare.md").read_text()
    assert "sis_autoencoder2" in (tmp_path / "c" / "report.html").read_text()
    assert darklens("compare", folders[0], work / f"{AUTOENCODER}-test", "--out", tmp_path / "d") == 2
    assert not (tmp_path / "d").exists()


def test_figures_of_evaluations_and_of_a_comparison_are_drawn(tiny, work, drawn, tmp_path):
    for run in (tiny / "sis_autoencoder2", work / AUTOENCODER):
        assert darklens("evaluate", run, tiny / "test", "--out", tmp_path / run.name) == 0
    folders = [tmp_path / "sis_autoencoder2", work / "resnet_simple-test"]
    assert darklens("compare", *folders, "--out", tmp_path / "c") == 0
    for name in ("sis_autoencoder2/roc.png", "sis_autoencoder2/calibration.png", "c/compare.png"):
        assert imread(tmp_path / name).std() > 0.01, name
    for name, figures in (("sis_autoencoder2", 8), (AUTOENCODER, 2), ("c", 2)):
        drawings = re.findall('"data:image/png;base64,([^"]+)"', (tmp_path / name / "report.html").read_text())
        assert len(drawings) >= figures and all(len(drawing) > 4000 for drawing in drawings)


def test_predict_and_evaluate_give_the_same_probabilities_unless_the_verdict_is_unknown(tiny, work, tmp_path):
    assert darklens("predict", tiny / "resnet_simple", tiny / "files" / "vort", "--out", tmp_path / "p.csv") == 0
    predicted, evaluated = rows_of(tmp_path / "p.csv"), rows_of(work / "resnet_simple-test" / "predictions.csv")
    assert len(predicted) == 12
    # Image 3 k + 2 of the store is vort/(k + 1).npy of the folder.
    for k in range(12):
        row = next(r for r in predicted if Path(r["path"]).name == f"{k + 1}.npy")
        p = float(evaluated[3 * k + 2]["p_vort"])
        expected = (p + 1 / 3) / 2 if row["verdict"] == "unknown" else p
        assert float(row["p_vort"]) == pytest.approx(expected, abs=1e-4)
        assert (row["verdict"] == "unknown") == (row["ood"] == "yes") == bool(row["reason"])


def test_a_bad_file_gets_a_row_and_the_others_are_classified(tiny, images, tmp_path, capsys):
    good = np.load(images / "no" / "1.npy")
    bad = {
        "empty": b"",
        "truncated": (images / "no" / "2.npy").read_bytes()[:500],
        "pickle": pickle.dumps(good),
    }
    for name, content in bad.items():
        (images / "no" / f"bad-{name}.npy").write_bytes(content)
    spoiled = good.copy()
    spoiled[..., :20] = np.nan  # more than 30 %
    arrays = {"nan": spoiled, "constant": np.ones((N, N)), "shape": np.zeros((3, N, N)), "size": np.eye(36)}
    for name, array in arrays.items():
        np.save(images / "no" / f"bad-{name}.npy", array)
    np.save(images / "no" / "bad-object.npy", np.array([{}], dtype=object), allow_pickle=True)

    assert darklens("predict", tiny / "resnet_simple", images / "no", "absent.npy", "--out", tmp_path / "p.csv") == 3
    rows = rows_of(tmp_path / "p.csv")
    errors = [row for row in rows if row["status"] == "error"]
    assert len(rows) == 12 + 8 + 1 and len(errors) == 9
    for row in errors:
        assert row["path"] in row["message"] and row["p_no"] == row["predicted"] == ""
    complaints = capsys.readouterr().err.strip().splitlines()
    warning, *complaints = complaints
    assert "no fit checks its classes" in warning
    assert len(complaints) == 9 and all(line.startswith("darklens: ") for line in complaints)
    assert not list(tmp_path.glob(".p.csv*"))


def test_an_exported_folder_is_imported(tiny, images, tmp_path, capsys):
    (images / "vort" / "3.npy").write_bytes(b"")
    (images / "index.csv").unlink()
    assert darklens("import", images, "--out", tmp_path / "s") == 3
    assert "vort/3.npy" in capsys.readouterr().err
    assert darklens("inspect", tmp_path / "s", "--verify") == 0
    assert "no: 12, sphere: 12, vort: 11" in capsys.readouterr().out
    assert darklens("evaluate", tiny / "resnet_simple", tmp_path / "s", "--out", tmp_path / "e") == 0
    assert rows_of(tmp_path / "e" / "predictions.csv")[0]["path"] == "no/1.npy"


def test_inspect_reports_damage(tmp_path, capsys):
    assert darklens("simulate", "common-test-i", "--out", tmp_path / "s", "field.n_pixels=16", "--n-per-class", 2) == 0
    shard = tmp_path / "s" / "shards" / "00000.images.npy"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert darklens("inspect", tmp_path / "s", "--verify") == 3
    assert "does not match its checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["frobnicate"], "Unknown command"),
        (["simulate", "common-test-ii", "--out", "x"], "did you mean 'common-test-i'?"),
        (["simulate", "common-test-i"], "--out"),
        (["simulate", "common-test-i", "--out", "x", "--n-per-class", "0"], "--n-per-class"),
        (["simulate", "common-test-i", "--out", "x", "source.q=2"], "source.q"),
        (["simulate", "common-test-i", "--out", "x", "lens.gama=0"], "did you mean 'gamma'?"),
        (["train", "resnet_simpel", "--data", "{tiny}/train", "--out", "x"], "did you mean 'resnet_simple'?"),
        (
            ["train", "resnet_simple", "--data", "{tiny}/train", "--out", "x", "model.dropuot=0"],
            "did you mean 'dropout'?",
        ),
        (["train", "resnet_simple", "--data", "absent", "--out", "x"], "absent is not a folder"),
        (
            ["train", "resnet_simple", "--data", "{tiny}/train", "--out", "x", "data.preprocess.crop=99"],
            "cannot be cropped",
        ),
        (["evaluate", "absent", "{tiny}/test", "--out", "x"], "absent does not exist"),
        (["evaluate", "{tiny}/resnet_simple", "{tiny}", "--out", "x"], "no store.json"),
        (["predict", "{tiny}/resnet_simple", "absent.npy", "--out", "x"], "no such file or folder"),
        (["predict", "--out", "x"], "Name the files or folders to classify"),
        (["predict", "{tiny}/resnet_simple", "--out", "x"], "Name the files or folders to classify"),
        (["predict", "{tiny}/resnet_simple", "{tiny}/test", "--out", "x", "--pixel-scale", "0.5"], "resample"),
        (["import", "absent", "--out", "x"], "absent does not exist"),
        (["compare", "{tiny}/train", "{tiny}/test", "--out", "x"], "holds no eval.json"),
        (["config", "show", "resnet_simple", "stages.3.epochs=1"], "must be an index"),
    ],
)
def test_wrong_use_is_one_sentence_exit_code_2_and_writes_nothing(
    tiny, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    assert darklens(*[a.format(tiny=tiny) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and sentence in lines[0], captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_is_exit_code_1_with_a_traceback_only_for_debug(monkeypatch, capsys):
    monkeypatch.setattr("darklens.recipes.names", lambda: 1 / 0)
    assert darklens("recipes") == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["recipes", "--debug"])


def test_listings(capsys):
    for command, expected in (
        (["recipes"], "sis_autoencoder2"),
        (["populations"], "deeplense-model-i"),
        (["models"], "autoencoder_resnet_simple"),
        (["config", "schema"], '"stages"'),
        (["config", "show", "sis_autoencoder2", "model.k_low=0.5"], "k_low: 0.5"),
    ):
        assert darklens(*command) == 0
        assert expected in capsys.readouterr().out


def test_a_printed_recipe_trains_to_the_same_weights(tiny, tmp_path, capsys):
    _, recipe, *words = training(tiny, "resnet_simple", tmp_path / "r")
    assert darklens("config", "show", recipe, *words[: words.index("--data")]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert darklens("train", tmp_path / "mine.yaml", *words[words.index("--data") :]) == 0
    first, second = ((run / "bundle" / "model.safetensors").read_bytes() for run in (tiny / recipe, tmp_path / "r"))
    assert first == second


@pytest.mark.parametrize("arguments", [["-c", "import darklens"], ["-m", "darklens.cli", "--help"]])
def test_start_up_imports_no_slow_modules(arguments):
    run = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    assert "darklens" in imported or "-m" in arguments
    assert not imported & {"torch", "numpy", "matplotlib", "pytorch_lightning", "astropy", "scipy", "pydantic"}


def print_to_a_closed_pipe(errors, command, buffering):
    read, write = os.pipe()
    os.close(read)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.stdout = os.fdopen(write, "w", buffering)
    main(command.split())


@pytest.mark.parametrize(("command", "buffering"), [("config show resnet_18", -1), ("populations", 1)])
def test_a_closed_output_pipe_is_not_an_error(tmp_path, command, buffering):
    arguments = str(tmp_path / "errors"), command, buffering
    run = prepared_processes().Process(target=print_to_a_closed_pipe, args=arguments)
    run.start()
    run.join()
    assert (run.exitcode, (tmp_path / "errors").read_text()) == (141, "")
