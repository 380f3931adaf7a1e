"""The classifier of fits: the battery of every system, and what is its own."""

import numpy as np
import pytest
import torch

from darklens import aliases, config, populations
from darklens.bundle import Bundle
from darklens.config import load
from darklens.data.store import Store
from darklens.errors import ConfigError
from darklens.files import read_json, write_json
from darklens.fit.cache import VERSION, cached_fits
from darklens.fit.features import MAP_NAMES, FitFeatures, extract_features
from darklens.fit.summary import FAILED, findings, fit_succeeded, summary_features
from darklens.models.lens_residual import LensResidual, LensResidualConfig
from darklens.models.zoo import build
from darklens.simulate.batch import simulate_batch
from darklens.simulate.generate import generate
from darklens.training.recipe import Recipe

SMALL = ["field.n_pixels=100"]
CONFIG = LensResidualConfig(population="common-test-i", overrides=SMALL, width=8)


def make(config=CONFIG):
    torch.manual_seed(0)
    return build(config, n_pixels=100, pixel_scale=0.05, n_classes=3)


def extract(images):
    return CONFIG.fit_settings.extract_features(images[:, 0])


@pytest.fixture(scope="module")
def lenses():
    images, truth = simulate_batch(CONFIG.population, 3, range(6))
    return torch.from_numpy(images), torch.from_numpy(truth["label"]).long()


@pytest.fixture(scope="module")
def features(lenses):
    return extract(lenses[0])


def test_output_is_finite_and_does_not_depend_on_the_batch(lenses, features):
    model, images = make().eval(), lenses[0]
    with torch.no_grad():
        together = model(features)
        alone = torch.cat([model(extract(image[None])) for image in images[:3]])
    assert together.shape == (6, 3) and torch.isfinite(together).all()
    # Each fit is an iteration whose last bits follow the batch's size, and a line in mere noise hardly has a place.
    torch.testing.assert_close(together[:3], alone, rtol=0.05, atol=0.1)


def test_every_parameter_learns_and_a_seed_fixes_it(lenses, features):
    def gradients():
        model = make().train()
        model.losses(features, lenses[1]).sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    first, second = gradients(), gradients()
    assert [name for name, grad in first.items() if grad is None or not grad.any()] == []
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_survive_saving_and_bfloat16_is_close(features):
    first, second = make().eval(), LensResidual(CONFIG, n_classes=3).eval()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        exact = first(features)
        assert torch.equal(exact, second(features))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (first(features).float() - exact).abs().max() <= 0.03 * (1 + exact.abs().max())


def test_a_failed_fit_is_classified_by_the_image_alone(features):
    model = make().eval()
    broken = features.clone()
    broken.column("deviance").mul_(20)
    with torch.no_grad():
        _, of_image = model.branches(features)
        torch.testing.assert_close(model(broken), of_image)
        assert not torch.equal(model(features), of_image)
    assert not fit_succeeded(broken).any() and fit_succeeded(features).all()
    assert set(findings(broken)["fit"]) == {FAILED} and set(findings(features)["fit"]) == {"ok"}


def test_noise_alone_is_not_said_to_be_fitted_well():
    blank = torch.rand(2, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = make().eval()
        features = extract(blank)
        assert torch.isfinite(features.maps).all() and torch.isfinite(features.summary).all()
        assert torch.isfinite(model(features)).all()
        assert torch.isfinite(model(extract(torch.zeros(1, 1, 100, 100)))).all()


def test_numbers_are_the_same_however_the_image_is_turned(lenses, features):
    reflected = extract(lenses[0].flip(-1))
    gains = [summary_features(each)[:, :3] for each in (features, reflected)]
    torch.testing.assert_close(*gains, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("inputs", ["maps", "summary", "image", "image_and_residual"])
def test_what_is_no_input_has_no_effect(inputs, features):
    model = make(CONFIG.model_copy(update={"inputs": inputs})).eval()
    maps, summary = features
    changed = {
        "maps": FitFeatures(maps, summary * 1.7),
        "summary": FitFeatures(maps + 1, summary),
        "image": FitFeatures(torch.cat([maps[:, :1], maps[:, 1:] + 1], 1), summary),
        "image_and_residual": FitFeatures(torch.cat([maps[:, :2], maps[:, 2:] + 1], 1), summary),
    }[inputs]
    with torch.no_grad():
        expected, _ = model.branches(features)
        torch.testing.assert_close(model.branches(changed)[0], expected)


def test_fits_of_a_store_are_those_of_its_images_and_are_kept(tmp_path):
    population = populations.get("common-test-i", SMALL)
    store = generate(population, tmp_path / "s", n_per_class=1, seed=3, shard_size=2)
    counted = []
    fits = cached_fits(store, population, advance=counted.append)
    assert sum(counted) == 3
    direct = extract_features(torch.from_numpy(store.images(range(3)))[:, 0], population)
    found = fits.features([2, 0, 1])
    assert found.maps.shape == (3, len(MAP_NAMES), 48, 48)
    torch.testing.assert_close(found.summary, direct.summary[[2, 0, 1]], rtol=0.02, atol=0.5)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "fits").rglob("*.npy")}
    assert len(files) == 4
    one = next(path for path in files if path.name == "00001.maps.npy")
    one.unlink()
    again = cached_fits(Store(tmp_path / "s"), population).features([2, 0, 1])
    torch.testing.assert_close(again.maps, found.maps)
    assert {p: p.stat().st_mtime_ns for p in files if p.name.startswith("00000")} == {
        p: t for p, t in files.items() if p.name.startswith("00000")
    }
    assert store.verify() == []


def test_fits_of_another_version_are_not_taken_for_these(tmp_path, monkeypatch):
    population = populations.get("common-test-i", SMALL)
    store = generate(population, tmp_path / "s", n_per_class=1, seed=3)
    cached_fits(store, population)
    monkeypatch.setattr("darklens.fit.cache.VERSION", -1)
    fitted_now = []
    monkeypatch.setattr("darklens.fit.cache._fit_shard", lambda *task: fitted_now.append(task) or 3)
    cached_fits(store, population)
    assert len(fitted_now) == 1


@pytest.mark.parametrize("is_earlier", [False, True])
def test_a_population_with_other_words_keeps_its_fits(is_earlier, tmp_path, monkeypatch):
    population = populations.get("common-test-i", SMALL)
    store = generate(population, tmp_path / "s", n_per_class=1, seed=3)
    expected = cached_fits(store, population).summary
    reworded = population.model_copy(update={"description": "Other words."})
    monkeypatch.setattr("darklens.fit.cache._fit_shard", lambda *_: pytest.fail("fitted again"))
    if is_earlier:  # named after the digest with the description
        (folder,) = (tmp_path / "s" / "fits").iterdir()
        folder.rename(folder.with_name(f"{config.digest(population)[:12]}-{VERSION}-centred"))
    again = cached_fits(store, population if is_earlier else reworded).summary
    np.testing.assert_array_equal(again, expected)


def test_fits_under_their_old_names_are_read_and_others_refused(tmp_path):
    population = populations.get("common-test-i", SMALL)
    store = generate(population, tmp_path / "s", n_per_class=1, seed=3)
    cached_fits(store, population)
    (folder,) = (tmp_path / "s" / "fits").iterdir()
    assert folder.name.endswith(f"-{VERSION}-centred")
    spec = read_json(folder / "fits.json")
    current = {new: old for old, new in aliases.FITS.items()}
    spec["channels"] = spec.pop("maps")
    spec["numbers"] = [current.get(name, name) for name in spec.pop("summary")]
    assert spec["numbers"][7:11] == ["blocks", "deviance", "converged", "extra_noise"]
    write_json(folder / "fits.json", spec)
    assert cached_fits(store, population).column("n_pixels_fitted").tolist() == [48**2] * 3
    write_json(folder / "fits.json", spec | {"numbers": spec["numbers"][::-1]})
    with pytest.raises(ConfigError, match="other columns"):
        cached_fits(store, population)


def test_fits_of_lenses_that_are_held_are_kept_apart_from_others(tmp_path):
    population = populations.get("common-test-i", SMALL)
    store = generate(population, tmp_path / "s", n_per_class=1, seed=3)
    held, free = (cached_fits(store, population, centred=centred).features([0, 1, 2]) for centred in (True, False))
    assert len(list((tmp_path / "s" / "fits").iterdir())) == 2
    assert not held.column("centre_x").any() and free.column("centre_x").all()


def test_a_lens_off_the_middle_is_told_as_one_in_the_middle():
    images, truth = simulate_batch(
        populations.get("common-test-i", ["stored=counts", "field.n_pixels=160"]), 5, range(9)
    )
    bundle = Bundle.load("lens_residual")
    assert bundle.contract.model.centred is False
    judged = [bundle.probabilities(images[:, :, 5 - up : 155 - up, 5:155]).argmax(1) for up in (0, 3)]
    for found in judged:
        assert (found == truth["label"]).mean() >= 8 / 9


@pytest.mark.usefixtures("in_pytorch")
def test_what_a_population_fixes_is_told_with_what_is_fitted():
    population = populations.get("deeplense-model-i")
    images, truth = simulate_batch(population, 3, [0])
    found = extract_features(torch.from_numpy(images)[:, 0], population).column("theta_E")
    assert float(found[0]) == pytest.approx(float(truth["theta_E"][0]), rel=1e-4)


def test_images_of_another_size_are_refused(tmp_path):
    store = generate(populations.get("common-test-i", ["field.n_pixels=40"]), tmp_path / "s", n_per_class=1, seed=3)
    with pytest.raises(ConfigError, match="40 pixels of"):
        cached_fits(store, populations.get("common-test-i"))


def test_a_recipe_names_its_population_and_keeps_its_pixels():
    tree = {"schema": 1, "name": "r", "description": "", "stages": [{"task": "classify", "epochs": 1}]}
    tree |= {"model": {"kind": "lens_residual"}, "data": {"augment": {"kind": "none"}}}
    recipe = load(
        Recipe, tree, ["model.population=common-test-i-isotropic", "model.overrides=[noise.sky=12]"], name="r"
    )
    assert recipe.model.population.name == "common-test-i-isotropic"
    assert recipe.model.population.noise.sky == 12 and recipe.model.overrides == ()
    with pytest.raises(ConfigError, match="fits whole images"):
        load(Recipe, tree, ["data.augment.kind=affine"], name="r")
    with pytest.raises(ConfigError, match="fits whole images"):
        load(Recipe, tree, ["data.preprocess.bin=2"], name="r")


def test_a_point_mass_and_a_line_are_told_apart_by_their_numbers():
    images, truth = simulate_batch(CONFIG.population, 9, range(15))
    features = extract_features(torch.from_numpy(images)[:, 0], CONFIG.population)
    beside, label = features.column("delta_chi2_point_given_line").numpy(), truth["label"]
    assert np.median(beside[label == 2]) < 20 < np.median(beside[label == 1])
    assert (
        features.column("delta_chi2_line")[label == 0].max() < 40 < features.column("delta_chi2_line")[label == 2].min()
    )
