"""A hyperparameter search by the command line: trials, a killed search, pruning, output files."""

import os
import signal

import pytest
import torch
from commandline import darklens, rows_of
from spawning import prepared_processes
from tiny import N

from darklens.bundle import Bundle
from darklens.training import tune as tuning
from darklens.training.recipe import get

pytest.importorskip("optuna")
RATE = "stages.0.optimiser.lr"
# 66 of the small store's images are trained on: three batches an epoch.
SMALL = ["resnet_simple", "data.preprocess.crop=44", "stages.0.epochs=2", "stages.0.batch_size=20"]
SEARCH = [*SMALL, f"{RATE}=log:1e-4..1e-2", "data.augment.kind={none,dihedral}"]


@pytest.fixture(scope="module")
def store(tiny):
    return tiny / "train"


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("searches") / "whole"
    assert darklens("tune", *SEARCH, "--data", store, "--out", out, "--trials", 3, "--seed", 2) == 0
    return out


def settings_of(out):
    return [(row["val_loss"], row[RATE], row["data.augment.kind"]) for row in rows_of(out / "trials.csv")]


def test_a_search_runs_trials_and_writes_the_best_recipe(whole, store, tmp_path):
    rows = rows_of(whole / "trials.csv")
    assert [row["state"] for row in rows] == ["complete"] * 3 and len({row[RATE] for row in rows}) == 3
    assert all(1e-4 <= float(row[RATE]) <= 1e-2 and float(row["val_loss"]) > 0 for row in rows)
    best = min(rows, key=lambda row: float(row["val_loss"]))
    recipe = get(str(whole / "best.yaml"))
    assert recipe.stages[0].optimiser.lr == float(best[RATE]) and recipe.data.augment.kind == best["data.augment.kind"]
    assert (whole / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert darklens("train", whole / "best.yaml", "--data", store, "--out", tmp_path / "run", "--seed", 2) == 0
    assert Bundle.load(tmp_path / "run").contract.validation["val_loss"] == pytest.approx(
        float(best["val_loss"]), rel=1e-5
    )


def die_in_the_second_trial(words):
    torch.set_num_threads(1)
    from darklens.training.learner import Learner

    original, steps = Learner.training_step, []

    def step(self, batch, batch_idx):
        steps.append(batch_idx)
        if len(steps) == 9:  # three steps per epoch, six per trial: the first epoch of the second trial is complete
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    Learner.training_step = step
    darklens(*words)


def test_a_killed_search_continues_with_the_same_trials(whole, store, tmp_path):
    words = ["tune", *SEARCH, "--data", store, "--out", tmp_path / "cut", "--seed", 2, "--trials", 3]
    child = prepared_processes().Process(target=die_in_the_second_trial, args=(list(map(str, words)),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert darklens(*words) == 0
    rows = rows_of(tmp_path / "cut" / "trials.csv")
    assert [row["state"] for row in rows] == ["complete", "failed", "complete", "complete"]
    settings = settings_of(tmp_path / "cut")
    assert settings[:1] + settings[2:] == settings_of(whole)
    assert settings[1][1:] == settings[2][1:]
    assert (tmp_path / "cut" / "best.yaml").read_text() == (whole / "best.yaml").read_text()


def test_a_finished_search_can_be_extended(whole, store, monkeypatch):
    before = settings_of(whole)
    words = ["tune", *SEARCH, "--data", store, "--out", whole, "--seed", 2]
    trained = []
    original = tuning.train
    monkeypatch.setattr(tuning, "train", lambda *a, **k: trained.append(1) or original(*a, **k))
    assert darklens(*words, "--trials", 2) == 0 and not trained
    assert darklens(*words, "--trials", 4) == 0 and len(trained) == 1
    assert settings_of(whole)[:3] == before and len(settings_of(whole)) == 4


def test_a_bad_trial_is_stopped_early(store, tmp_path):
    # With the learning rate of the second trial the loss does not decrease.
    words = [*SMALL, "stages.0.epochs=3", "stages.0.schedule.kind=constant", "stages.0.ema_decay=0"]
    words += ["--data", store, "--out", tmp_path / "s", "--prune-after", 1, "--seed", 0]
    space = {RATE: tuning.search_space.Choice(values=("1e-3", "1e3"))}
    rates = iter(["1e-3", "1e3"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.search_space, "parse", lambda *_: (space, tuple(words[1:7])))
        patch.setattr(tuning.search_space, "suggested", lambda *_: {RATE: next(rates)})
        assert darklens("tune", *words, "--trials", 2) == 0
    rows = rows_of(tmp_path / "s" / "trials.csv")
    assert [row["state"] for row in rows] == ["complete", "pruned"]
    assert rows[0]["epochs"] == "3" and rows[1]["epochs"] in ("0", "1", "2")
    assert "worse than others" in rows[1]["problem"] or "not finite" in rows[1]["problem"]


def test_invalid_settings_are_refused_and_reported(store, tmp_path, capsys):
    words = [*SMALL[:1], "data.preprocess.crop={44,66}", "stages.0.epochs=1", "stages.0.batch_size=20"]
    assert darklens("tune", *words, "--data", store, "--out", tmp_path / "s", "--trials", 4) == 3
    rows = rows_of(tmp_path / "s" / "trials.csv")
    expected = {"44": "complete", "66": "refused"}
    assert [expected[row["data.preprocess.crop"]] for row in rows] == [row["state"] for row in rows]
    assert capsys.readouterr().err.count(f"66 pixels cannot be cropped from images of {N}") == sum(
        row["state"] == "refused" for row in rows
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stages.0.optimiser.rate=1..2"], "unknown key"),
        (["stages.0.optimiser.lr=2..1"], "lower to a higher"),
        (["--metric", "val_auc"], "does not classify"),
        (["--metric", "test_auc"], "val_loss"),
        (["--trials", "0"], "trials"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(words, sentence, store, tmp_path, capsys):
    recipe = "autoencoder_resnet_simple" if "val_auc" in words else "resnet_simple"
    assert darklens("tune", recipe, "--data", store, "--out", tmp_path / "s", *words) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_another_search_in_the_same_folder_is_refused(whole, store, capsys):
    words = ["tune", *SEARCH, "--data", store, "--out", whole, "--trials", 9]
    assert darklens(*words, "--seed", 3) == 2 and "another seed" in capsys.readouterr().err
    assert darklens(*words[:-4], "--out", whole, "--seed", 2, "--metric", "val_auc") == 2
    assert "another metric" in capsys.readouterr().err


def test_without_optuna_one_sentence_says_how_to_get_it(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert darklens("tune", *SEARCH, "--data", store, "--out", tmp_path / "s") == 2
    assert 'pip install "darklens[tune]"' in capsys.readouterr().err and not (tmp_path / "s").exists()
