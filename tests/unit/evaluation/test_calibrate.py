"""Calibration on held-out images, saved with the bundle; ensembles as means of their members."""

import json
import math

import numpy as np
import pytest
import torch

from darklens.bundle import Bundle
from darklens.bundle.combine import ensemble
from darklens.bundle.contract import Contract
from darklens.bundle.storage import OOD_REFERENCE
from darklens.calibration import Calibration, softmax
from darklens.data.store import Store, StoreIndex, write_index, write_shard
from darklens.errors import InputError
from darklens.evaluation.calibrate import calibrate_on, halves
from darklens.evaluation.columns import prediction_columns, summarise_calibration
from darklens.evaluation.evaluate import evaluate
from darklens.export import _WithPreprocessing
from darklens.locate import CONTRACT, SHIPPED
from darklens.models import resnet_18
from darklens.models.autoencoder import AutoencoderConfig
from darklens.models.resnet_18 import ResNet18Config
from darklens.models.resnet_simple import ResNetSimpleConfig

N = 44
CONFORMAL = {"level": 0.9, "lac": 0.5, "lac_by_class": [0.5] * 3, "aps": 0.9, "aps_whole": 0.9}
CURVE = {"predicted": [0.0, 1.0], "calibrated": [0.1, 0.9]}
HARMFUL_NAMES = ("../../x", "a|b", "<b>", "=1", "", "unknown", "x\x1b")
TEMPERATURES = (math.nan, math.inf, -1, 0, 1e-300, 1e300)


def untrained(seed=0, config=None, **changes):
    values = {
        "recipe": "r",
        "n_pixels": N,
        "pixel_scale": 0.1,
        "parameters": 7,
        "data": {"population": "p", "seed": 1, "sha256": "abc"},
        "provenance": {"train_seconds": 1.0, "train_images": 60, "commit": "c", "hardware": "h"},
    }
    contract = Contract.untrained(config or ResNetSimpleConfig(), **(values | changes))
    torch.manual_seed(seed)
    network = contract.build()
    for module in network.modules():  # the logits of untrained networks hardly differ
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 3
    return Bundle(contract, network)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """240 images of one, two or three stripes, in noise."""
    g, labels = np.random.default_rng(0), np.arange(240) % 3
    images = g.normal(0, 0.1, (240, 1, N, N)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        for stripe in range(label + 1):
            image[0, 10 + 8 * stripe : 13 + 8 * stripe, 5:35] += 1
    path = tmp_path_factory.mktemp("stores") / "s"
    shard = write_shard(path, 0, images, {"label": labels})
    write_index(
        path, StoreIndex(classes=["no", "sphere", "vort"], n_pixels=N, pixel_scale=0.1, version="0", shards=[shard])
    )
    return Store(path)


@pytest.fixture(scope="module")
def calibrated(store):
    return calibrate_on(untrained(), store)


def test_halves_share_no_image_and_divide_each_class():
    labels = np.array([0] * 7 + [1] * 4 + [2])
    first, second = halves(labels, seed=0)
    assert sorted([*first, *second]) == list(range(12))
    assert np.bincount(labels[first], minlength=3).tolist() == [3, 2, 0]
    assert halves(labels, seed=1)[0].tolist() != first.tolist()


def test_a_calibration_is_reproducible_and_divides_the_logits(store, calibrated):
    record = calibrated.contract.calibration
    assert calibrate_on(untrained(), store).contract.calibration == record
    assert record.temperature_images == 120 and record.threshold_images == 120
    assert [c.level for c in record.conformal] == [0.9, 0.95] and [s.risk for s in record.selective] == [0.01, 0.05]
    logits = calibrated.outputs_of(store).logits
    probabilities = calibrated.calibrated(logits)
    np.testing.assert_allclose(probabilities, softmax(logits / record.temperature))
    np.testing.assert_allclose(calibrated.classify(store.images([3])).probabilities, probabilities[3:4], atol=1e-6)


def test_bundles_with_and_without_calibration_survive_a_round_trip(store, calibrated, tmp_path):
    for name, bundle in (("old", untrained()), ("new", calibrated)):
        bundle.save(tmp_path / name)
        again = Bundle.load(tmp_path / name)
        assert again.contract.calibration == bundle.contract.calibration
        logits, features = again.outputs_of(store)
        probabilities, expected = again.calibrated(logits), bundle.calibrated(bundle.outputs_of(store).logits)
        np.testing.assert_array_equal(probabilities, expected)
        columns = prediction_columns(again, probabilities, features)
        assert columns == prediction_columns(bundle, expected, features)
    # Bundles of earlier versions have neither entry.
    contract = json.loads((tmp_path / "old" / CONTRACT).read_text())
    del contract["calibration"], contract["ood_sha256"]
    (tmp_path / "old" / CONTRACT).write_text(json.dumps(contract))
    old = Bundle.load(tmp_path / "old")
    assert old.contract.calibration is None and not (tmp_path / "old" / OOD_REFERENCE).exists()
    columns = prediction_columns(old, np.ones((2, 3)) / 3, np.zeros((2, 5)))
    assert columns == {"set": ["", ""], "ood_score": ["", ""], "ood": ["", ""]}
    assert summarise_calibration(old, np.ones((2, 3)) / 3, np.zeros((2, 5)), np.array([0, 1])) == {}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"calibration": {"curves": [CURVE]}}, "not that of 3 classes"),
        ({"calibration": {"conformal": [CONFORMAL | {"lac_by_class": [0.5]}]}}, "not that of 3 classes"),
        ({"n_pixels": 64}, "the fitted population has 150 pixels of 0.05 arcsec, the model 64 of 0.05"),
        ({"pixel_scale": 0.1}, "the fitted population has 150 pixels of 0.05 arcsec, the model 150 of 0.1"),
    ],
)
def test_a_contract_whose_parts_do_not_agree_is_one_sentence(change, problem):
    contract = json.loads((SHIPPED / "lens_residual" / CONTRACT).read_text())
    with pytest.raises(ValueError, match=problem):
        Contract.model_validate(contract | change)


def test_models_of_unknown_provenance_can_be_combined():
    members = [untrained(data={}, provenance={}), untrained(data={}, provenance={})]
    assert ensemble(members).contract.provenance["train_images"] == 0


@pytest.mark.parametrize("damage", ["absent", "changed", "other"])
def test_a_damaged_ood_reference_is_one_sentence(calibrated, tmp_path, damage):
    calibrated.save(tmp_path / "b")
    path = tmp_path / "b" / OOD_REFERENCE
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] if damage == "changed" else b"x")
    with pytest.raises(
        InputError, match=r"ood.safetensors is missing or does not match its contract; train the model or download"
    ):
        Bundle.load(tmp_path / "b")


def test_an_unknown_system_is_one_sentence_that_names_the_variable_of_plug_ins(tmp_path):
    untrained().save(tmp_path / "b")
    contract = json.loads((tmp_path / "b" / CONTRACT).read_text())
    contract["model"]["kind"] = "tiny_net"
    (tmp_path / "b" / CONTRACT).write_text(json.dumps(contract))
    with pytest.raises(InputError) as caught:
        Bundle.load(tmp_path / "b")
    expected = "Unknown system 'tiny_net'; if a plug-in defines it, name the plug-in in DARKLENS_PLUGINS."
    assert str(caught.value) == f"{tmp_path / 'b' / CONTRACT}: model: {expected}"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        *(
            ("classes", ["no", name, "vort"], "the name of a class")
            for name in ("../../x", "a|b", "<b>", "=1", "", "unknown", "x\x1b")
        ),
        ("classes", [], "at least 1"),
        ("recipe", "x\x1b[31m", "control characters"),
        ("licence", "a\nb", "control characters"),
        ("data", {"population": {"a": 1}}, "population must be a name"),
        ("provenance", {"train_images": "many"}, "must be numbers"),
        *(
            ("calibration", {"temperature": value}, "temperature")
            for value in (math.nan, math.inf, -1, 0, 1e-300, 1e300)
        ),
        *(
            ("calibration", {"conformal": [CONFORMAL | {key: -1.0}]}, key)
            for key in ("level", "lac", "aps", "aps_whole")
        ),
        ("calibration", {"conformal": [CONFORMAL | {"lac_by_class": [-1.0] * 3}]}, "lac_by_class"),
        ("calibration", {"ood": {"p95": 2.0, "p99": 1.0}}, "p95 must not exceed p99"),
        ("calibration", {"ood": {"p95": 1.0, "p99": 1e300}}, "p99"),
        ("model", {"kind": "autoencoder_resnet_simple", "latent": 10**12}, "less than or equal to 65536"),
        ("model", {"kind": "sis_autoencoder2", "k_network": {"kind": "transformer", "depth": 10**9}}, "equal to 100"),
        ("pixel_scale", 0, "greater than 0"),
        ("pixel_scale", -0.1, "greater than 0"),
        ("classes", ["no", "no", "vort"], "two classes have the same name"),
        ("model", {"kind": "ensemble", "members": [{"kind": "resnet_simple"}] * 9999}, "at most 100"),
    ],
)
def test_a_contract_that_lies_is_one_sentence(tmp_path, key, value, problem):
    untrained().save(tmp_path / "b")
    contract = json.loads((tmp_path / "b" / CONTRACT).read_text())
    (tmp_path / "b" / CONTRACT).write_text(json.dumps(contract | {key: value}))
    with pytest.raises(InputError, match=rf"bundle.json: {key}.*{problem}"):
        Bundle.load(tmp_path / "b")


def test_verdicts_of_an_evaluation_are_those_of_single_classifications(store, calibrated, tmp_path):
    output, calibration = calibrated.outputs_of(store), calibrated.contract.calibration
    median = float(np.median(calibrated.ood_reference.scores(output.ood_features)))
    stricter = calibration.model_copy(update={"ood": calibration.ood.model_copy(update={"p99": median})})
    contract = calibrated.contract.model_copy(update={"calibration": stricter})
    bundle = Bundle(contract, calibrated.network, ood_reference=calibrated.ood_reference)
    bundle.save(tmp_path / "b")
    result = evaluate(bundle, tmp_path / "b", store)
    assert result.columns["verdict"].count("unknown") == 120
    assert [(reason,) if reason else () for reason in result.columns["reason"]] == bundle.classify(
        store.images(range(240))
    ).doubts
    np.testing.assert_array_equal(result.probabilities, bundle.calibrated(output.logits))  # not widened


def test_noise_images_are_out_of_distribution_and_sets_are_written(store, calibrated):
    images = store.images(range(60))
    noise = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    columns = [
        prediction_columns(calibrated, c.probabilities, c.ood_features)
        for c in map(calibrated.classify, (images, noise))
    ]
    assert set(columns[1]["ood"]) == {"yes"} and columns[0]["ood"].count("yes") <= 6
    assert set(columns[0]["ood_score"]).isdisjoint(columns[1]["ood_score"])
    names = {"no", "sphere", "vort"}
    probabilities = calibrated.probabilities(images)
    sets = [set(value.split("|")) for value in columns[0]["set"]]
    assert all(members <= names for members in sets)
    top = [calibrated.contract.classes[i] for i in probabilities.argmax(1)]
    assert all(name in members for name, members in zip(top, sets, strict=True))
    summary = summarise_calibration(
        calibrated, probabilities, calibrated.classify(images).ood_features, store.labels[:60]
    )
    assert set(summary) == {"calibration", "conformal", "selective", "ood"}
    json.dumps(summary, allow_nan=False)


def test_training_images_are_refused_for_calibration(store):
    with pytest.raises(InputError, match="trained on"):
        calibrate_on(untrained(data={"population": "x", "seed": 0, "sha256": store.sha256}), store)
    members = [{"population": "x", "seed": 0, "sha256": sha} for sha in ("a", store.sha256)]
    with pytest.raises(InputError, match="trained on"):
        calibrate_on(untrained(data={"population": "x", "seed": 0, "sha256": "b", "members": members}), store)
    with pytest.raises(InputError, match="does not classify"):
        calibrate_on(untrained(config=AutoencoderConfig()), store)


@pytest.mark.parametrize("config", [ResNetSimpleConfig(), ResNet18Config()])
def test_an_ensemble_is_the_mean_of_its_members(store, tmp_path, monkeypatch, config):
    monkeypatch.setattr(resnet_18, "_WIDTHS", (8, 8, 16, 16))
    members = [untrained(0, config), calibrate_on(untrained(1), store)]
    images = store.images(range(5))
    mean = np.mean([member.probabilities(images) for member in members], axis=0)
    joint = ensemble(members)
    joint.save(tmp_path / "e")
    again = Bundle.load(tmp_path / "e")
    for bundle in (joint, again):
        np.testing.assert_allclose(bundle.probabilities(images), mean, atol=1e-6)
    assert again.contract.parameters == 14 and again.contract.provenance["train_images"] == 60
    fitted = calibrate_on(again, store)
    np.testing.assert_allclose(softmax(fitted.output(fitted.inputs_of(images)).logits), mean, atol=1e-6)
    assert fitted.contract.calibration.conformal and fitted.ood_reference is not None
    assert "ensemble of 2" in again.card


def test_members_of_an_ensemble_must_take_the_same_images(calibrated):
    with pytest.raises(InputError, match="at least two"):
        ensemble([calibrated])
    with pytest.raises(InputError, match="differ in classes, image size"):
        ensemble([calibrated, untrained(pixel_scale=0.2)])
    with pytest.raises(InputError, match="ensemble itself"):
        ensemble([ensemble([calibrated, untrained()]), untrained()])
    with pytest.raises(InputError, match="does not classify"):
        ensemble([calibrated, untrained(config=AutoencoderConfig())])
    inherited = ensemble([calibrated, untrained()])
    assert inherited.contract.calibration.ood == calibrated.contract.calibration.ood
    assert inherited.contract.calibration.conformal == () and inherited.ood_reference is calibrated.ood_reference


def test_what_is_exported_gives_the_calibrated_probabilities_of_an_ensemble(store, calibrated):
    joint = ensemble([calibrated, untrained(3)])
    bundle = Bundle(joint.contract.model_copy(update={"calibration": Calibration(temperature=2.5)}), joint.network)
    images = store.images(range(7))
    probabilities = _WithPreprocessing(bundle).eval()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(probabilities, bundle.probabilities(images), atol=1e-4)
    assert np.abs(probabilities - joint.probabilities(images)).max() > 1e-3
