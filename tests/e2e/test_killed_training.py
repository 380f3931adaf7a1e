"""kill -9 in the middle of an epoch, then --resume: the weights of an uninterrupted run, for each kind of system."""

import os
import signal
import time

import pytest
import torch
from spawning import prepared_processes, start_command

from darklens import populations
from darklens.data.store import Store
from darklens.models import resnet_18
from darklens.models.zoo import kinds, requires_fitting
from darklens.simulate.generate import generate
from darklens.training import recipe as recipes
from darklens.training.run import train

FIELD = "field.n_pixels=44"
SEED = 5
NARROW = (8, 8, 16, 16)  # channels of ResNet-18, whose checkpoints take most of the time otherwise
# Each kind of system once and each loader with every kind of schedule, with and without a running mean of the weights,
# with every augmentation, in one stage and in several. lens_residual has a loader of its own for the fits of a store.
KILLED = [
    ("resnet_simple", "store"),  # one cycle, dropout, images moved by affine maps
    ("resnet_simple_fine_tuned", "stream"),  # a plateau with a running mean, after a stage of one cycle
    ("resnet_18_legacy", "store"),  # plateaus without a running mean, validation images moved too, the last epoch kept
    ("resnet_18_curriculum", "stream"),  # four stages, constant rates, clipped gradients, no augmentation
    ("autoencoder_resnet_simple", "stream"),
    ("sis_autoencoder", "stream"),  # reconstruction, then classification
    ("sis_autoencoder2_legacy", "store"),
    ("sis_transformer", "store"),
    ("two_stage", "store"),  # losses of its own
    ("lens_residual", "store"),
    ("unrolled_residual", "store"),
]


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "s"
    generate(populations.get("deeplense-model-i", [FIELD]), path, n_per_class=4, seed=1, workers=1)
    return path


@pytest.fixture(scope="module")
def processes():
    return prepared_processes()


def overrides_of(name, source):
    """One epoch of two batches for each stage and two for the last, images from a store or from a stream."""
    changes = ["data.preprocess.crop=44", "data.preprocess.bin=1", f"data.kind={source}"]
    if requires_fitting(recipes.get(name).model):
        changes = [f"data.kind={source}", "data.augment.kind=dihedral", "data.backend=eager"]
        changes += [f"model.overrides=[{FIELD}]"]
    last = len(recipes.get(name).stages) - 1
    for i in range(last + 1):
        changes += [f"stages.{i}.epochs={1 + (i == last)}", f"stages.{i}.batch_size=4", f"stages.{i}.bin=1"]
    if source == "store":
        unscaled = [f"stages.{i}.substructure_scale=1" for i in range(last + 1)]
        return [*changes, *unscaled, "data.population=null", "data.n_per_class=null"]
    stream = ["population=common-test-i", f"overrides=[{FIELD}]", "backend=eager", "workers=0"]
    return [*changes, *(f"data.{c}" for c in stream), "data.images_per_epoch=8", "data.validation_images=3"]


def die_in_the_middle_of_the_last_epoch(name, source, store_path, out):
    from darklens.training.learner import Learner

    resnet_18._WIDTHS = NARROW
    torch.set_num_threads(1)
    recipe = recipes.get(name, overrides_of(name, source))
    original, last = Learner.training_step, len(recipe.stages) - 1

    def step(self, batch, batch_idx):
        if (self._stage_index, self.current_epoch, batch_idx) == (last, 1, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    Learner.training_step = step
    train(recipe, Store(store_path) if source == "store" else None, out, seed=SEED)


def test_ctrl_c_is_one_sentence_and_leaves_the_last_epoch_to_go_on_from(store_path, tmp_path):
    out, errors = tmp_path / "run", tmp_path / "errors"
    words = ["train", "resnet_simple", "--data", store_path, "--out", out, "data.preprocess.crop=44"]
    run = start_command([*words, "stages.0.batch_size=8", "stages.0.epochs=5000"], errors)
    try:
        until = time.monotonic() + 120
        while run.is_alive() and time.monotonic() < until and not list(out.glob("checkpoints/*/last.ckpt")):
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)
        run.join(60)
    finally:
        run.kill()
    said = errors.read_text()
    last = said.splitlines()[-1]
    assert run.exitcode == 130 and last.startswith("darklens: Interrupted") and "with --resume" in last, said
    assert not (out / "bundle").exists() and list((out / "checkpoints").rglob("last.ckpt"))


def test_every_kind_of_system_is_killed():
    assert {recipes.get(name).model.kind for name, _ in KILLED} == set(kinds())


# Left to the sweep: checkpoints do not depend on the architecture, and the others have the same loaders and schedules.
SWEPT = {"resnet_18_legacy", "autoencoder_resnet_simple", "sis_autoencoder2_legacy", "sis_transformer"}
SWEPT |= {"two_stage", "unrolled_residual"}
PARTLY_SWEPT = [pytest.param(*pair, marks=[pytest.mark.sweep] * (pair[0] in SWEPT)) for pair in KILLED]


@pytest.mark.parametrize(("name", "source"), PARTLY_SWEPT)
def test_a_killed_training_resumes_to_the_same_weights(name, source, store_path, processes, tmp_path, monkeypatch):
    monkeypatch.setattr(resnet_18, "_WIDTHS", NARROW)
    recipe = recipes.get(name, overrides_of(name, source))
    store = Store(store_path) if source == "store" else None
    whole = train(recipe, store, tmp_path / "whole", seed=SEED).network.state_dict()
    child = processes.Process(
        target=die_in_the_middle_of_the_last_epoch, args=(name, source, store_path, tmp_path / "cut")
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "bundle").exists()
    resumed = train(recipe, store, tmp_path / "cut", seed=SEED, resume=True).network.state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert all(value.isfinite().all() for value in whole.values())
