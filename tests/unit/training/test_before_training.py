"""What would end a training at its end is found before it starts, or at the first step that shows it."""

import shutil

import numpy as np
import pytest
from commandline import darklens

from darklens.data.store import Store, StoreIndex, write_index, write_shard
from darklens.errors import DivergedError, InputError
from darklens.training.recipe import get
from darklens.training.run import train

CLASSES = ["no", "sphere", "vort"]
QUICK = ["stages.0.epochs=2", "stages.0.batch_size=4", "data.augment.kind=dihedral"]


def make_store(path, labels, *, pixel=None):
    """A store of noise with the given labels; `pixel` is the value of one pixel of the last image."""
    labels = np.asarray(labels)
    images = np.random.default_rng(0).random((len(labels), 1, 44, 44)).astype(np.float32)
    if pixel is not None:
        images[-1, 0, 20, 20] = pixel
    shard = write_shard(path, 0, images, {"label": labels})
    write_index(path, StoreIndex(classes=CLASSES, n_pixels=44, pixel_scale=0.1, version="0", shards=[shard]))
    return Store(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the fewest images of each class that a training takes."""
    folder = tmp_path_factory.mktemp("run")
    bundle = train(get("resnet_simple", QUICK), make_store(folder / "store", [0, 1, 2] * 2), folder / "run")
    assert bundle.contract.calibration is not None
    return folder / "run"


@pytest.mark.parametrize("labels", [[0, 1] * 12, [0, 2] * 12, [1] * 24], ids=["no vort", "no sphere", "sphere alone"])
@pytest.mark.parametrize("command", ["train", "train --resume", "tune", "evaluate", "calibrate"])
def test_a_class_without_images_is_named_before_the_work(run, tmp_path, capsys, command, labels):
    make_store(tmp_path / "store", labels)
    words = {
        "train": ["train", "resnet_simple", *QUICK, "--data", "store"],
        "tune": ["tune", "resnet_simple", *QUICK, "--data", "store", "--trials", 1],
        "evaluate": ["evaluate", run, "store"],
        "calibrate": ["calibrate", run, "store"],
    }[command.split()[0]]
    words = [tmp_path / word if word == "store" else word for word in words]
    assert darklens(*words, *command.split()[1:], "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "Unexpected" not in printed.err
    assert all(CLASSES[label] in printed.err for label in {0, 1, 2} - set(labels))
    assert "epoch" not in printed.out + printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_found_before_the_training(tmp_path, label):
    with pytest.raises(InputError, match="no class"):
        train(get("resnet_simple", QUICK), make_store(tmp_path / "store", [0, 1, 2] * 4 + [label]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_needs_no_classes(tmp_path):
    recipe = get("autoencoder_resnet_simple", [])
    stages = tuple(stage for stage in recipe.stages if stage.task == "reconstruct")
    from darklens.training.sources import source_of

    assert source_of(recipe.data, stages, make_store(tmp_path / "store", [0] * 8), seed=0).train_images


DIVERGING = {
    "learning rate": (["stages.0.optimiser.lr=1e30", "stages.0.schedule.kind=constant"], None),
    "infinite pixel": ([], np.inf),
    "NaN pixel": ([], np.nan),
}


@pytest.mark.parametrize("cause", DIVERGING)
def test_a_training_stops_at_the_first_loss_that_is_not_finite_and_leaves_no_bundle(tmp_path, cause):
    settings, pixel = DIVERGING[cause]
    store, out = make_store(tmp_path / "store", [0, 1, 2] * 4, pixel=pixel), tmp_path / "out"
    recipe = get("resnet_simple", [*QUICK, "stages.0.epochs=50", *settings])
    for resume in (False, True):
        with pytest.raises(DivergedError, match=r"epoch \d+.*lower stages.0.optimiser.lr"):
            train(recipe, store, out, resume=resume)
        assert not (out / "bundle").exists()
        assert "nan" not in (out / "metrics.csv").read_text() if (out / "metrics.csv").exists() else True
    assert darklens("predict", out, store.path, "--out", tmp_path / "table.csv") == 2


def test_a_search_goes_on_after_a_trial_that_diverges(tmp_path):
    pytest.importorskip("optuna")
    make_store(tmp_path / "store", [0, 1, 2] * 4)
    space = ["stages.0.optimiser.lr={1e30,1e-3}", "stages.0.schedule.kind=constant", *QUICK]
    words = ["tune", "resnet_simple", *space, "--data", tmp_path / "store", "--out", tmp_path / "out"]
    assert darklens(*words, "--trials", 4) == 0
    table = (tmp_path / "out" / "trials.csv").read_text()
    assert "step" in table
    assert "complete" in table
    shutil.rmtree(tmp_path / "out")
