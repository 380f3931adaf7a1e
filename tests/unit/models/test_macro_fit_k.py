"""k from a fit: the Einstein radius and the position of the lens, and systems whose lens step uses them."""

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.config import load
from darklens.data.preprocess import Preprocess
from darklens.errors import ConfigError
from darklens.models.informed import SISAutoencoder2Config, SISAutoencoderConfig
from darklens.models.macro_fit_k import MacroFitConfig, MacroFitK
from darklens.models.zoo import build
from darklens.simulate.batch import simulate_batch
from darklens.training.recipe import get

CROP = 96


@pytest.fixture(scope="module")
def lenses():
    """Three smooth lenses and their Einstein radii."""
    population = populations.get("common-test-i")
    images, truth = simulate_batch(population, 4, [0, 3, 6])
    assert set(truth["label"]) == {0}
    return torch.from_numpy(images), torch.from_numpy(truth["theta_E"]).float()


def system(kind=SISAutoencoder2Config, **settings):
    torch.manual_seed(0)
    config = kind(k_network=MacroFitConfig(), **settings)
    return build(config, n_pixels=CROP, pixel_scale=0.05, n_classes=3)


@pytest.mark.parametrize("blocks", [1, 2])
def test_k_is_the_einstein_radius_in_crops_and_blocks_of_pixels(lenses, blocks):
    images, theta_E = lenses
    inputs = Preprocess(crop=CROP, bin=blocks)(images)
    fit = MacroFitK(MacroFitConfig(centred=True), n_pixels=CROP // blocks, pixel_scale=0.05 * blocks)
    k, centre = fit(inputs)
    assert (k - theta_E).abs().max() < 0.005
    assert not torch.stack(centre).any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fit(inputs)[0], k)


def test_the_lens_step_is_that_of_an_sis_at_the_fitted_position(lenses):
    images, theta_E = lenses
    moved = Preprocess(crop=CROP)(images.roll((2, -3), (-2, -1)))  # 0.1 arcsec up, 0.15 arcsec to the left
    network = system().eval()
    _, (x, y) = network.k_network(moved)
    np.testing.assert_allclose(x, -0.15, atol=0.02)
    np.testing.assert_allclose(y, 0.1, atol=0.02)
    maps = network.maps(moved)
    alpha = torch.hypot(maps["alpha_x"], maps["alpha_y"])
    torch.testing.assert_close(alpha, maps["k"])
    assert (maps["k"].amax((1, 2)) == maps["k"].amin((1, 2))).all()
    assert (maps["k"][:, 0, 0] - theta_E).abs().max() < 0.02
    from_x, from_y = network.lens.x - x[:, None, None], network.lens.y - y[:, None, None]
    torch.testing.assert_close(maps["alpha_x"] * from_y, maps["alpha_y"] * from_x)


@pytest.mark.parametrize("kind", [SISAutoencoderConfig, SISAutoencoder2Config])
def test_only_the_classifier_is_trained_and_a_bundle_has_maps(lenses, kind, tmp_path):
    inputs = Preprocess(crop=CROP)(lenses[0])
    network = system(kind, classifier={"kind": "resnet_simple", "dropout": 0}).train()
    network(inputs).square().sum().backward()
    assert network.k_parameters() == []
    assert all(name.startswith("classifier.") and p.grad.any() for name, p in network.named_parameters())
    contract = Contract.untrained(network._config, n_pixels=CROP, pixel_scale=0.05)
    made = Bundle(contract, contract.build())
    made.save(tmp_path)
    loaded = Bundle.load(tmp_path)
    assert loaded.requires_fitting and loaded.has_maps and loaded.fit_settings is None
    assert set(loaded.maps(inputs.numpy())) == {"image", "k", "alpha_x", "alpha_y", "source"}
    assert torch.equal(loaded.run(inputs)[1], made.run(inputs)[1])
    tree = contract.model_dump(by_alias=True)
    tree["model"]["k_network"]["population"] = "x.yaml"
    with pytest.raises(ValueError, match="population must be a mapping"):  # a bundle reads no files outside its folder
        Contract.model_validate(tree)


@pytest.mark.usefixtures("in_pytorch")
def test_an_einstein_radius_that_the_population_fixes_is_k():
    population = populations.get("deeplense-model-i")
    fit = MacroFitK(MacroFitConfig(population=population), n_pixels=48, pixel_scale=population.field.pixel_scale)
    k, _ = fit(torch.rand(2, 1, 48, 48))
    assert k[0] == k[1] > 0.5


def test_settings_that_contradict_a_fit_are_refused():
    assert get("sis_macro_fit", ["data.preprocess.crop=96", "data.preprocess.bin=2"]).model.requires_fitting
    for override, sentence in (
        ("data.augment.kind=affine", "must not be resampled"),
        ("stages.0.task=reconstruct", "cannot reconstruct"),
        ("pretrained=x", "no autoencoder"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            get("sis_macro_fit", [override])
    tree = {"kind": "sis_autoencoder2", "k_network": {"kind": "macro_fit"}}
    with pytest.raises(ConfigError, match="omit it where k is fitted"):
        load(SISAutoencoder2Config, tree | {"legacy_pixel_k": True})
    with pytest.raises(ConfigError, match="no blocks of the pixels of common-test-i"):
        MacroFitK(MacroFitConfig(), n_pixels=64, pixel_scale=0.07)
