"""Training on a few small images: results, selected epochs, resuming and errors."""

import csv
import json
import resource
import shutil
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from darklens import provenance
from darklens.bundle import Bundle
from darklens.data.loaders import split
from darklens.data.store import Store, StoreIndex, write_index, write_shard
from darklens.errors import ConfigError, InputError
from darklens.files import locked
from darklens.training import run as run_module
from darklens.training.ema import WeightEMA, recompute_batch_norm
from darklens.training.learner import Learner
from darklens.training.precision import precision_of
from darklens.training.recipe import get
from darklens.training.run import train
from darklens.training.sources import StreamSource

SMALL = ["model.dropout=0.1", "stages.0.epochs=4", "stages.0.batch_size=8", "data.augment.kind=dihedral"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Sixty 44-pixel images of three classes that any network can classify: one, two or three stripes."""
    g = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = g.normal(0, 0.1, (60, 1, 44, 44)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        for stripe in range(label + 1):
            image[0, 10 + 8 * stripe : 13 + 8 * stripe, 5:35] += 1
    path = tmp_path_factory.mktemp("stores") / "s"
    shard = write_shard(path, 0, images, {"label": labels})
    index = StoreIndex(classes=["no", "sphere", "vort"], n_pixels=44, pixel_scale=0.1, version="0", shards=[shard])
    write_index(path, index)
    return Store(path)


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "r"
    return train(get("resnet_simple", SMALL), store, out, seed=3), out


def weights(bundle):
    return {name: value.clone() for name, value in bundle.network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def rows(out):
    with (out / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_loss_decreases_and_each_epoch_is_recorded(finished):
    bundle, out = finished
    assert [r["epoch"] for r in rows(out)] == ["0", "1", "2", "3"]
    assert float(rows(out)[-1]["train_loss"]) < 0.7 * float(rows(out)[0]["train_loss"])
    best = min(rows(out), key=lambda r: float(r["val_loss"]))
    assert bundle.contract.validation["val_loss"] == float(best["val_loss"])


def test_the_bundle_is_the_best_epoch_and_reproduces_its_validation_loss(finished, store):
    bundle, _ = finished
    validation = split(store.labels, validation_fraction=0.1, seed=3).validation
    p = bundle.probabilities(store.images(validation))
    loss = -np.log(p[np.arange(len(validation)), store.labels[validation]]).mean()
    assert loss == pytest.approx(bundle.contract.validation["val_loss"], rel=1e-3)


def test_a_seed_determines_the_weights(finished, store, tmp_path):
    recipe = get("resnet_simple", SMALL)
    assert same(weights(finished[0]), weights(train(recipe, store, tmp_path / "a", seed=3)))
    assert [r["val_loss"] for r in rows(tmp_path / "a")] == [r["val_loss"] for r in rows(finished[1])]
    assert not same(weights(finished[0]), weights(train(recipe, store, tmp_path / "b", seed=4)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_are_clipped_in_every_precision(store, tmp_path, precision):
    norms = []

    def before_step(optimiser, *_):  # gradients of the previous step
        grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0)

    hook = register_optimizer_step_pre_hook(before_step)
    try:
        overrides = [*SMALL, "stages.0.epochs=1", "stages.0.gradient_clip=0.01", f"precision={precision}"]
        train(get("resnet_simple", overrides), store, tmp_path / "r", seed=3)
    finally:
        hook.remove()
    assert len(norms) > 3 and all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms[1:])


@pytest.mark.parametrize("killed_in", [(1, 0), (3, 4)])
def test_an_interrupted_run_resumes_to_the_same_weights(finished, store, tmp_path, monkeypatch, killed_in):
    original = Learner.training_step

    def kill(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == killed_in:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    recipe = get("resnet_simple", SMALL)
    monkeypatch.setattr(Learner, "training_step", kill)
    monkeypatch.setattr(provenance, "commit", lambda: "first")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(recipe, store, tmp_path / "r", seed=3)
    assert not (tmp_path / "r" / "bundle").exists()
    monkeypatch.setattr(Learner, "training_step", original)
    monkeypatch.setattr(provenance, "commit", lambda: "second")
    resumed = train(recipe, store, tmp_path / "r", seed=3, resume=True)
    assert resumed.contract.provenance["commit"] == "first, second"
    assert same(weights(finished[0]), weights(resumed))
    assert [r["val_loss"] for r in rows(tmp_path / "r")] == [r["val_loss"] for r in rows(finished[1])]


STREAM = [
    *SMALL,
    "stages.0.epochs=3",
    "data.kind=stream",
    "data.population=common-test-i",
    "data.overrides=[field.n_pixels=44]",
    "data.images_per_epoch=24",
    "data.validation_images=9",
    "data.workers=0",
]


@contextmanager
def limited_files(n_bytes):
    """Let writes beyond a size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_the_run_resumes(finished, store, tmp_path):
    with limited_files(50_000) as limit, pytest.raises(InputError, match=r"ckpt cannot be written \(the disk or the"):
        train(get("resnet_simple", SMALL), store, tmp_path / "r", seed=3, on_epoch=lambda m: m.epoch == 1 and limit())
    resumed = train(get("resnet_simple", SMALL), store, tmp_path / "r", seed=3, resume=True)
    assert same(weights(resumed), weights(finished[0]))
    with limited_files(50_000) as limit:
        limit()
        with pytest.raises(InputError, match="safetensors cannot be written"):
            resumed.save(tmp_path / "b")
    assert not (tmp_path / "b" / "bundle.json").exists()


def test_two_processes_do_not_train_in_one_folder(store, tmp_path):
    (tmp_path / "r").mkdir()
    with locked(tmp_path / "r"), pytest.raises(InputError, match=r"Another process is writing to .*/r; wait"):
        train(get("resnet_simple", SMALL), store, tmp_path / "r")


def test_a_damaged_checkpoint_is_one_sentence(finished, store, tmp_path):
    out = shutil.copytree(finished[1], tmp_path / "r")
    last = out / "checkpoints/stage0-classify/last.ckpt"
    for content in (last.read_bytes()[:90_000], b"", b"x"):
        last.write_bytes(content)
        with pytest.raises(InputError, match=r"last.ckpt is damaged; remove .*stage0-classify to repeat this stage"):
            train(get("resnet_simple", SMALL), store, out, seed=3, resume=True)


def test_a_stream_needs_no_store(tmp_path):
    contract = train(get("resnet_simple", STREAM), None, tmp_path / "r", seed=4).contract
    assert contract.data["population"] == "common-test-i" and contract.n_pixels == 44
    assert contract.provenance["train_images"] == 72 and len(rows(tmp_path / "r")) == 3


def test_a_stage_can_override_the_population():
    easier = "classes.vort.mass_fraction.high=0.5"
    recipe = get("resnet_simple", [*STREAM, f"stages.0.overrides=[{easier}]", "stages.0.images_per_epoch=12"])
    source, plain = (
        StreamSource(recipe.data, recipe.stages, 4),
        StreamSource(recipe.data, get("resnet_simple").stages, 4),
    )
    assert source.train_images == 36
    stage = recipe.stages[0]
    unchanged = stage.model_copy(update={"overrides": ()})
    changed, same_ = (next(iter(source.loaders(s, 0, 0)[0])) for s in (stage, unchanged))
    assert not torch.equal(changed[0], same_[0]) and torch.equal(changed[1], same_[1])
    validation = [
        next(iter(s.loaders(x, 0, 0)[1]))[0] for s, x in ((source, stage), (source, unchanged), (plain, unchanged))
    ]
    assert not torch.equal(validation[0], validation[1]) and torch.equal(validation[1], validation[2])


def test_a_stage_scales_the_substructure_of_its_training_and_validation_images():
    recipe = get("resnet_simple", [*STREAM, "stages.0.substructure_scale=9"])
    source, stage = StreamSource(recipe.data, recipe.stages, 4), recipe.stages[0]
    unscaled = stage.model_copy(update={"substructure_scale": 1.0})
    for loaders in zip(*(source.loaders(s, 0, 0) for s in (stage, unscaled)), strict=True):
        (scaled, labels), (plain, _) = (next(iter(loader)) for loader in loaders)
        assert torch.equal(scaled[labels == 0], plain[labels == 0])
        assert all(not torch.equal(scaled[labels == label], plain[labels == label]) for label in (1, 2))


def test_a_stage_cannot_change_the_field_or_the_classes(store, tmp_path):
    with pytest.raises(ConfigError, match=r"stages.0.overrides: a stage cannot change the field"):
        train(get("resnet_simple", [*STREAM, "stages.0.overrides=[field.n_pixels=48]"]), None, tmp_path / "r")
    with pytest.raises(
        ConfigError, match=r"stages.0: overrides, substructure_scale and images_per_epoch are for data.kind stream"
    ):
        get("resnet_simple", ["stages.0.overrides=[lens.gamma=0]"])


def test_the_decay_of_the_average_rises_to_its_final_value():
    update = WeightEMA(0.9)._kwargs["multi_avg_fn"]
    mean, counted = [torch.zeros(3)], [torch.tensor(1)]
    update(mean, [torch.ones(3)], torch.tensor(1))
    assert torch.allclose(mean[0], torch.full((3,), 1 - 2 / 11))
    update(mean, [torch.zeros(3)], torch.tensor(10**6))
    assert torch.allclose(mean[0], torch.full((3,), 0.9 * (1 - 2 / 11)))
    update(counted, [torch.tensor(7)], torch.tensor(5))
    assert counted[0] == 7


def test_recomputing_batch_norm_changes_its_statistics_only():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.9))
    batches = [5 + 3 * torch.randn(50, 1, 9, 9) for _ in range(4)]
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" not in name}
    recompute_batch_norm(network, batches)
    inputs = network[0](torch.cat(batches))
    torch.testing.assert_close(network[1].running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, inputs.var((0, 2, 3)), rtol=0.01, atol=0)
    assert network[1].momentum == 0.1 and not any(m.training for m in network.modules())
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "num_batches" not in name)


def test_a_stage_validates_and_keeps_the_averaged_weights(store, tmp_path, finished):
    plain = train(get("resnet_simple", [*SMALL, "stages.0.ema_decay=0"]), store, tmp_path / "plain", seed=3)
    assert [r["train_loss"] for r in rows(tmp_path / "plain")] == [r["train_loss"] for r in rows(finished[1])]
    assert [r["val_loss"] for r in rows(tmp_path / "plain")] != [r["val_loss"] for r in rows(finished[1])]
    assert not same(weights(plain), weights(finished[0]))


def test_a_recipe_has_either_a_store_or_a_stream(store, tmp_path):
    with pytest.raises(ConfigError, match="omit --data"):
        train(get("resnet_simple", STREAM), store, tmp_path / "r")
    with pytest.raises(ConfigError, match="Pass a store with --data"):
        train(get("resnet_simple", SMALL), None, tmp_path / "r")
    with pytest.raises(ConfigError, match=r"data.population is needed"):
        get("resnet_simple", ["data.kind=stream"])


def test_a_folder_in_use_is_refused(finished, store, tmp_path):
    out = finished[1]
    with pytest.raises(InputError, match="already contains a run; add --resume"):
        train(get("resnet_simple", SMALL), store, out, seed=3)
    with pytest.raises(InputError, match=r"another recipe: model.dropout is 0.1 there and 0.2 here"):
        train(get("resnet_simple", [*SMALL, "model.dropout=0.2"]), store, out, seed=3, resume=True)
    with pytest.raises(InputError, match="other data, seed or version"):
        train(get("resnet_simple", SMALL), store, out, seed=5, resume=True)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty"):
        train(get("resnet_simple", SMALL), store, tmp_path / "x")


def test_resuming_a_finished_run_changes_nothing(finished, store):
    bundle, out = finished
    assert same(weights(bundle), weights(train(get("resnet_simple", SMALL), store, out, seed=3, resume=True)))


def test_a_run_with_older_names_of_settings_resumes(finished, store, tmp_path):
    bundle, out = finished
    shutil.copytree(out, tmp_path / "r")
    settings = (out / "config.yaml").read_text()
    assert "  backend: eager\n" in settings
    (tmp_path / "r/config.yaml").write_text(settings.replace("  backend: eager\n", "  engine: eager\n"))
    resumed = train(get("resnet_simple", SMALL), store, tmp_path / "r", seed=3, resume=True)
    assert same(weights(bundle), weights(resumed))


def test_the_last_epoch_is_selected_only_on_request(store, tmp_path):
    bundle = train(get("resnet_simple", [*SMALL, "stages.0.legacy_last_epoch=true"]), store, tmp_path / "r", seed=3)
    assert bundle.contract.validation["epoch"] == 3
    last = torch.load(tmp_path / "r/checkpoints/stage0-classify/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[f"network.{name}"]) for name, value in weights(bundle).items())


def test_double_softmax_bounds_the_loss_from_below(store):
    stage = get("resnet_simple", ["stages.0.legacy_double_softmax=true"]).stages[0]
    confident = torch.tensor([[100.0, 0.0, 0.0]])
    images, label = torch.zeros(1, 1, 4, 4), torch.tensor([0])
    data = get("resnet_simple").data
    for legacy, expected in ((True, 0.5514), (False, 0.0)):
        learner = Learner(
            torch.nn.Identity(),
            stage=stage.model_copy(update={"legacy_double_softmax": legacy}),
            stage_index=0,
            data=data,
            seed=0,
            batch_size=1,
        )
        assert float(learner._losses(confident, images, label)) == pytest.approx(expected, abs=1e-4)


AUTOENCODER = ["model.latent=16", "stages.0.epochs=2", "stages.0.batch_size=8"]
SIS = [
    "model.k_network.latent=16",
    "stages.0.epochs=1",
    "stages.1.epochs=1",
    "stages.0.batch_size=8",
    "stages.1.batch_size=8",
]


def test_the_sis_system_starts_from_a_pretrained_autoencoder_or_trains_one(store, tmp_path, monkeypatch):
    autoencoder = train(get("autoencoder_resnet_simple", AUTOENCODER), store, tmp_path / "ae")
    initial = {}
    original = run_module._run_stage

    def spy(network, recipe, stage, index, *rest):
        if stage.task == "classify":
            initial[recipe.pretrained] = {k: v.clone() for k, v in network.k_network.state_dict().items()}
        return original(network, recipe, stage, index, *rest)

    monkeypatch.setattr(run_module, "_run_stage", spy)
    path = str(tmp_path / "ae")
    bundle = train(get("sis_autoencoder2", [*SIS, f"pretrained={path}"]), store, tmp_path / "a")
    assert same(weights(autoencoder), initial[path])
    assert {r["task"] for r in rows(tmp_path / "a")} == {"classify"}
    trained = bundle.network.get_submodule("k_network").state_dict()
    assert not same(weights(autoencoder), trained)  # the classification loss trains it further

    train(get("sis_autoencoder2", SIS), store, tmp_path / "b")
    assert [r["task"] for r in rows(tmp_path / "b")] == ["reconstruct", "classify"]
    stage = torch.load(tmp_path / "b/checkpoints/stage0-reconstruct/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, stage[f"network.{name}"]) for name, value in initial[None].items())

    with pytest.raises(InputError, match="not an autoencoder of the same size"):
        train(get("sis_autoencoder2", [f"pretrained={path}"]), store, tmp_path / "c")


def test_mixed_precision_trains(store, tmp_path):
    train(get("sis_autoencoder2", [*SIS, "precision=bfloat16"]), store, tmp_path / "r")
    assert {r["task"] for r in rows(tmp_path / "r")} == {"reconstruct", "classify"}
    assert all(np.isfinite(float(r["train_loss"])) for r in rows(tmp_path / "r"))


def test_precisions_have_lightnings_names():
    assert precision_of("auto", torch.device("cpu")) in ("32-true", "bf16-mixed")
    assert precision_of("bfloat16", torch.device("cuda")) == "bf16-mixed"


class TestBundle:
    def test_it_loads_from_another_folder_with_its_contract(self, finished, tmp_path):
        bundle, out = finished
        shutil.copytree(out / "bundle", tmp_path / "b")
        loaded = Bundle.load(tmp_path / "b")
        assert same(weights(bundle), weights(loaded))
        contract = json.loads((tmp_path / "b" / "bundle.json").read_text())
        assert contract["classes"] == ["no", "sphere", "vort"]
        assert contract["n_pixels"] == 44 and contract["pixel_scale"] == 0.1
        assert contract["provenance"]["train_images"] == 54 and contract["provenance"]["seed"] == 3

    def test_predictions_do_not_depend_on_the_batch_or_on_the_scale_of_the_image(self, finished, store):
        images = store.images(range(8))
        together = finished[0].probabilities(images)
        alone = np.concatenate([finished[0].probabilities(image[None] * 300 + 40) for image in images])
        np.testing.assert_allclose(together, alone, atol=1e-4)
        np.testing.assert_allclose(together.sum(1), 1, atol=1e-9)

    @pytest.mark.parametrize("damage", ["weights", "contract", "missing", "other network"])
    def test_a_damaged_bundle_is_refused(self, finished, tmp_path, damage):
        folder = tmp_path / "b"
        shutil.copytree(finished[1] / "bundle", folder)
        contract = json.loads((folder / "bundle.json").read_text())
        if damage == "weights":
            content = bytearray((folder / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (folder / "model.safetensors").write_bytes(content)
        elif damage == "missing":
            (folder / "model.safetensors").unlink()
        elif damage == "contract":
            contract["classess"] = []
        else:
            contract["n_pixels"] = 64
        (folder / "bundle.json").write_text(json.dumps(contract))
        with pytest.raises(InputError, match=r"model\.safetensors|classess"):
            Bundle.load(folder)

    def test_other_folders_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            Bundle.load(tmp_path / "absent")
        with pytest.raises(InputError, match="finished training"):
            Bundle.load(tmp_path)
