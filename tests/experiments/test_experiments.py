"""Each kind of experiment on a few images, from simulation to table; kept pages are what the kept numbers give."""

import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from commandline import darklens as command
from matplotlib.figure import Figure

from darklens.data.store import Store
from darklens.errors import ConfigError
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.files import read_json, write_json, write_text
from darklens.predict import Row, to_csv
from darklens.training import recipe as recipes
from experiments import curves, engine, time_to_quality, training
from experiments.__main__ import SMOKE_TEST, main, names, read

PNG, CLASSES, TIME = b"\x89PNG", ["no", "sphere", "vort"], {"train_seconds": 60.0}
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Return a function that runs the quick variant of an experiment in this process and lists its commands.

    Figures are made but not drawn, and one process does all work.
    """
    monkeypatch.setattr(Figure, "savefig", lambda self, target, **_: target.write(PNG))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)

    def run(name, *words):
        calls = []

        def darklens(*call):
            calls.append(call[0])
            assert command(*call) == 0

        monkeypatch.setattr(engine, "darklens", darklens)
        folders = [word for part in ("runs", "stores", "results") for word in (f"--{part}", str(tmp_path / part))]
        main([name, "--quick", *folders, *words])
        return calls

    return run


@pytest.fixture
def untrained(monkeypatch):
    """Let trainings end at once and give each the evaluation of a classifier that draws probabilities at random."""

    def train(recipe, overrides, run, *, seed=0, store=None):
        trained.append((recipe, store is not None))
        run.mkdir(parents=True, exist_ok=True)

    def evaluate(run, store):
        labels = Store(store).labels
        probabilities = np.random.default_rng(len(trained)).dirichlet(np.ones(3), len(labels))
        metrics = metrics_with_intervals(labels, probabilities, CLASSES, resamples=20)
        write_json(
            run / "test/eval.json", metrics | {"model": {"recipe": run.name, "parameters": 5}, "provenance": TIME}
        )
        rows = [Row(str(i), list(map(float, p))) for i, p in enumerate(probabilities)]
        write_text(run / "test/predictions.csv", to_csv(rows, CLASSES, {"label": [CLASSES[i] for i in labels]}))
        for name in ("roc.png", "calibration.png"):
            (run / "test" / name).write_bytes(PNG)
        return run / "test"

    trained = []
    monkeypatch.setattr(engine, "train", train)
    monkeypatch.setattr(engine, "evaluate", evaluate)
    return trained


def test_systems_are_trained_and_compared_and_nothing_is_done_twice(quick, tmp_path):
    assert quick("ablation", "seeds=1") == ["simulate", "simulate", *["train", "evaluate"] * 2]
    out = tmp_path / "results/common-test-i/ablation"
    result = read_json(out / "ablation.json")
    systems = ["no lens step", "k in arcsec, learnt"]
    assert [row["system"] for row in result["rows"]] == systems
    first, second = (row["auc"]["macro"]["value"] for row in result["rows"])
    (difference,) = result["differences"]
    assert difference["auc"]["value"] == pytest.approx(second - first, abs=1e-9)
    assert all(f"| {name} |" in (out / "ablation.md").read_text() for name in systems)
    assert (out / "ablation.png").read_bytes() == PNG
    (path,) = (tmp_path / "runs").glob("no-lens-step-12-*/seed0/test/eval.json")
    path.unlink()
    assert quick("ablation", "seeds=1") == ["evaluate"]
    assert read_json(out / "ablation.json") == result


def test_curves_have_a_row_for_each_size_and_one_without_a_network(quick, untrained, tmp_path):
    quick("learning_curves")
    result = read_json(tmp_path / "results/common-test-i/learning_curves/curves.json")
    systems = ["lens_residual", "fit summary alone", "logistic regression on five chi2 differences"]
    assert [(row["system"], row["n_per_class"]) for row in result["rows"]] == [(name, 4) for name in systems]
    assert result["rows"][2]["parameters"] == 18
    assert result["differences"][0]["first"] == "lens_residual, 4 per class"
    assert untrained == [("lens_residual", True)] * 2


def test_unfinished_trainings_have_learning_curves_alone(quick, untrained, monkeypatch, tmp_path):
    def train(recipe, overrides, run, **_):
        """Leave an epoch in each stage but the fourth, which has four that gain 0.1, 0.05, 0.02 and 0.002."""
        aucs = [("0", 0.99), ("1", 0.9), ("2", 0.8), *zip("3333", (0.7, 0.75, 0.77, 0.772), strict=True)]
        lines = [f"{stage},classify,0,1,1,{auc},0,1" for stage, auc in aucs]
        write_text(run / "metrics.csv", "\n".join(["stage,task,epoch,train_loss,val_loss,val_auc,lr,seconds", *lines]))
        write_json(run / training.BUNDLE, {})

    monkeypatch.setattr(engine, "train", train)
    quick("convergence", "overrides=[data.images_per_epoch=128, data.workers=0]")
    out = tmp_path / "results/common-test-i/convergence"
    result = read_json(out / "convergence.json")
    assert [curve["system"] for curve in result["curves"]] == ["no lens step", "k from the macro fit"]
    assert result["curves"][0]["points"] == [[512, 0.7], [640, 0.75], [768, 0.77], [896, 0.772]]
    assert (out / "resnet_simple/seed0/metrics.csv").exists()
    text = (out / "convergence.md").read_text()
    assert "| k from the macro fit | 0 | 896 | 0.0 | 0.7720 | - | not converged |" in text
    assert [d["first"] for d in result["differences"]] == ["k from the macro fit"]
    (path,) = (tmp_path / "runs").glob("no-lens-step-*/seed0/bundle/bundle.json")
    path.unlink()
    quick("convergence", "overrides=[data.images_per_epoch=128, data.workers=0]", "finished_only=true")
    partial = read_json(out / "convergence.json")
    assert [row["system"] for row in partial["rows"]] == ["k from the macro fit"]
    assert [curve["finished"] for curve in partial["curves"]] == [False, True]
    assert partial["differences"] == []


def test_a_training_is_converged_if_the_last_doubling_gains_little():
    points = [curves.Point(*p) for p in ((100, 0.7), (200, 0.9), (400, 0.902))]
    assert curves.doubling_gain(points) == pytest.approx(0.002)
    assert curves.doubling_gain(points[1:2]) is None and curves.doubling_gain([]) is None
    curve = {"system": "s", "seed": 0, "images_per_second": 1, "finished": True, "points": points}
    assert curves.table([curve])[1] == ["s", "0", "400", "0.1", "0.9020", "+0.0020", "converged"]


def test_the_study_trains_on_a_store_and_the_corrected_systems_on_the_stream(quick, untrained, tmp_path, capsys):
    quick("study")
    assert capsys.readouterr().out.count(SMOKE_TEST) == 2  # at the start, and above the table
    out = tmp_path / "results/common-test-i/study"
    rows = read_json(out / "study.json")["rows"]
    kept = [read_json(out / f"Resnet_simple/{way}/seed0/eval.json") for way in ("study", "corrected")]
    assert [row["auc"] for row in rows] == [evaluation["auc"] for evaluation in kept]
    assert untrained == [("resnet_simple_legacy", True), ("resnet_simple_curriculum", False)]
    page = (out / "study.md").read_text()
    assert page.count("| Resnet_simple |") == 2 and page.startswith("# Smoke test of: ") and SMOKE_TEST in page


@pytest.mark.parametrize("name", [name for name in read("study", []).systems if not name.endswith("corrected")])
def test_the_study_and_the_corrected_trainings_see_equal_images(name):
    config, counts = read("study", []), {}
    for system in (name, f"{name.split(', ')[0]}, corrected"):
        (entry,) = training.trainings(config.model_copy(update={"only": [system]}), engine.Work(*[Path()] * 3))
        recipe = recipes.get(entry.system.recipe, entry.overrides)
        stream = recipe.data.kind == "stream"
        per_epoch = recipe.data.images_per_epoch if stream else round(3 * config.n_per_class * 0.9)
        for task in ("reconstruct", "classify"):
            epochs = sum(stage.epochs for stage in recipe.stages if stage.task == task)
            counts.setdefault(task, []).append(epochs * per_epoch)
    assert counts["classify"] == [config.settings["images"]] * 2
    assert counts["reconstruct"] == [27_000 if name.startswith("SIS") else 0] * 2


def test_recipes_are_trained_and_evaluations_copied_to_the_results(quick, untrained, tmp_path):
    assert quick("reproduce") == ["simulate", "simulate"]
    kept = tmp_path / "results/common-test-i/resnet_simple/seed0"
    assert sorted(path.name for path in kept.iterdir()) == ["calibration.png", "eval.json", "roc.png"]
    assert untrained == [("resnet_simple", True)]


def test_processor_time_is_measured_and_other_recipes_stay(quick, untrained, monkeypatch, tmp_path):
    monkeypatch.setattr(time_to_quality, "watched", lambda command, metrics, before: [])
    quick("time_to_quality")
    result = read_json(tmp_path / "results/time_to_quality.json")
    entry = result["measured"]["resnet_simple"]
    assert entry["images"] == 36
    assert entry["test_images"] == 12
    assert {"lens_residual, common-test-i, seed0"} <= {e["system"] for e in result["earlier"]}


def test_a_model_is_evaluated_on_each_set_of_images(quick, tmp_path):
    quick("shifts")
    rows = read_json(tmp_path / "results/common-test-i/shifts/shifts.json")["rows"]
    assert [row["name"] for row in rows] == read("shifts", [], "quick").only
    assert [row["n"] for row in rows] == [3, 3]


def test_a_fallback_is_compared_with_the_model_alone(quick, tmp_path):
    quick("fallback")
    (row,) = read_json(tmp_path / "results/common-test-i/fallback/fallback.json")["rows"]
    assert row["n"] == 3 and row["by_fallback"] > 0 and 0 <= row["coverage"] <= 1
    assert set(row["alone"]) == set(row["with_fallback"]) == {"auc", "accuracy"}


def test_the_score_of_a_model_is_compared_with_other_images(quick, tmp_path):
    quick("ood")
    (entry,) = read_json(tmp_path / "results/common-test-i/ood/ood.json")["models"].values()
    (noise,) = entry["rows"]
    assert noise["auroc"] == noise["beyond_p99"] == 1.0


def test_fits_are_counted_by_class(quick, tmp_path):
    quick("hypotheses")
    result = read_json(tmp_path / "results/common-test-i/hypotheses/hypotheses.json")
    assert {name: len(values) for name, values in result["delta_chi2_point_given_line"].items()} == {
        name: len(result["percentiles"]) for name in ("no", "sphere", "vort")
    }
    chance = read_json(tmp_path / "results/common-test-i/hypotheses/chance.json")
    assert chance["images"] == 1
    assert all(values == sorted(values) for values in chance["gains"].values())


def test_images_are_predicted_and_compared_with_their_classes(quick, tmp_path):
    assert quick("real_images") == ["predict"]
    result = read_json(tmp_path / "results/common-test-i/real_images/real_images.json")
    assert result["exact"]["accuracy"] == 1.0
    assert [row["path"] for row in result["rows"]] == [f"{name}/1.npy" for name in ("no", "sphere", "vort")]


def test_leaks_are_planted_and_looked_for(quick, tmp_path):
    quick("leaks")
    result = read_json(tmp_path / "results/leaks/leaks.json")
    assert result["common-test-i"]["clean"]["seeds"] == result["common-test-i"]["planted"][0]["runs"] == 1
    assert "| common-test-i | 10 | no |" in (tmp_path / "results/leaks/leaks.md").read_text()


def test_intervals_are_counted(quick, tmp_path):
    quick("coverage")
    result = read_json(tmp_path / "results/coverage.json")
    metrics = [m for system in result["systems"].values() for m in system["metrics"].values()]
    assert len(metrics) > 30
    assert {m["covered"] for m in metrics} <= {0.0, 0.5, 1.0}


def test_a_model_is_calibrated_on_one_simulation_and_evaluated_on_another(quick, tmp_path):
    assert quick("calibration") == ["simulate", "simulate"]
    (row,) = read_json(tmp_path / "results/calibration/calibration.json")["rows"]
    assert (row["recipe"], row["held_out"], row["fresh"]) == ("lens_residual", 12, 3)
    assert set(row["coverage"]) == {"lac", "lac_by_class", "aps"}


KEPT = [
    *((name, "") for name in names() if read(name, []).out),
    ("shifts", "robust"),
    ("slacs", "source-grid"),
    ("fallback", "n1500"),
    ("fallback", "as_trained"),
    ("stress_test", "n300"),
    ("stress_test", "galaxies"),
]


@pytest.mark.parametrize(("name", "variant"), KEPT)
def test_a_kept_page_is_what_the_kept_numbers_give(name, variant):
    experiment = read(name, [], variant)
    out = ROOT / "results" / engine.filled(experiment.out, experiment.model_dump())
    module = import_module(f"experiments.{experiment.kind}")
    if hasattr(module, "page"):
        text = module.page(experiment, read_json(out.with_suffix(".json")))
        assert out.with_suffix(".md").read_text(encoding="utf-8") == text
    if hasattr(module, "figure") and out.with_suffix(".png").exists():
        module.figure(experiment, read_json(out.with_suffix(".json")))


def test_what_does_not_exist_is_named_with_what_does():
    with pytest.raises(ConfigError, match="Unknown experiment 'ablatoin': did you mean 'ablation'"):
        read("ablatoin", [])
    with pytest.raises(ConfigError, match="Unknown variant of ablation 'huge'"):
        read("ablation", [], "huge")
    with pytest.raises(ConfigError, match="ablation: seed: unknown key; did you mean 'seeds'"):
        read("ablation", ["seed=2"])
