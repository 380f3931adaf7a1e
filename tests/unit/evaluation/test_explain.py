import importlib.util
import sys

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.data.preprocess import Preprocess
from darklens.errors import ConfigError, InputError
from darklens.evaluation import explain as module
from darklens.evaluation.explain import agreement, explain, with_random_weights
from darklens.models.autoencoder import AutoencoderConfig
from darklens.models.informed import SISAutoencoder2Config
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.simulate.batch import simulate_batch

N = 64
IMAGES = simulate_batch(populations.get("common-test-i", (f"field.n_pixels={N}",)), 1, range(3))[0]


def bundle(model=None, seed=0, **preprocess):
    size = {"n_pixels": N, "pixel_scale": 0.05}
    contract = Contract.untrained(model or ResNetSimpleConfig(), **size, preprocess=Preprocess(**preprocess))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Bundle(contract, contract.build())


@pytest.fixture
def few_steps(monkeypatch):
    """Integrate coarsely: one test compares the integral with the change of the log-odds."""
    monkeypatch.setattr(module, "_STEPS", (8,))


@pytest.mark.parametrize("model", [ResNetSimpleConfig(), SISAutoencoder2Config()], ids=lambda m: m.kind)
def test_integrated_gradients_sum_to_the_change_of_the_log_odds(model):
    system = bundle(model)
    last = [module for module in system.network.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.weight.data *= {"resnet_simple": 2e4}.get(model.kind, 2e5)  # an untrained network hardly separates the classes
    explanation = explain(system, IMAGES[:1], label=1)
    assert explanation.attribution.shape == explanation.inputs.shape == (1, 1, N, N) and explanation.map_names == (
        "image",
    )
    change = explanation.log_odds - explanation.baseline
    assert (np.abs(change) > 1).all() and (np.abs(explanation.unexplained) <= 0.02 * np.abs(change)).all()


def test_log_odds_are_those_of_the_probabilities_and_of_the_requested_class(few_steps):
    system = bundle()
    p = system.probabilities(IMAGES)
    preferred, second = explain(system, IMAGES), explain(system, IMAGES, label=1)
    np.testing.assert_array_equal(preferred.label, p.argmax(1))
    np.testing.assert_allclose(preferred.log_odds, np.log(p.max(1) / (1 - p.max(1))), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(second.log_odds, np.log(p[:, 1] / (1 - p[:, 1])), rtol=1e-3, atol=1e-4)
    assert second.label.tolist() == [1, 1, 1]


def test_cropped_pixels_have_no_attribution(few_steps):
    explanation = explain(bundle(crop=48), IMAGES)
    margin = explanation.attribution.copy()
    margin[..., 8:-8, 8:-8] = 0
    assert not margin.any() and explanation.attribution.any() and explanation.pixel_scale == 0.05


def test_the_only_pixel_that_a_network_uses_has_the_attribution(few_steps):
    class OnePixel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, image):
            bright = self.weight * image[:, 0, 20, 30]
            return torch.stack([bright, 0 * bright, 0 * bright - 20], 1)

    system = bundle()
    system.network = OnePixel()
    for method in ("integrated_gradients", "occlusion"):
        attribution = explain(system, IMAGES, method=method, label=0).attribution[:, 0]
        strongest = np.abs(attribution).reshape(3, -1).argmax(1)
        assert (np.abs(strongest // N - 20) <= 6).all() and (np.abs(strongest % N - 30) <= 6).all()
        if method == "integrated_gradients":
            assert np.count_nonzero(attribution) == 3 and (strongest == 20 * N + 30).all()


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_random_weights_change_the_attribution(few_steps, method):
    system, images = bundle(), IMAGES[:1]
    trained = explain(system, images, method=method, label=1)
    again = explain(system, images, method=method, label=1)
    assert (agreement(trained, again) > 0.999).all()
    for seed in range(2):
        random = explain(with_random_weights(system, seed=seed + 1), images, method=method, label=1)
        assert (np.abs(agreement(trained, random)) < 0.5).all()


def test_the_shipped_model_is_explained_by_its_maps_and_summary_and_not_with_random_weights():
    system = Bundle.load("lens_residual")
    images = simulate_batch(populations.get("common-test-i"), 7, [2])[0]  # a line mass
    explanation = explain(system, images)
    assert explanation.label.tolist() == [2] and explanation.attribution.shape[1] == len(explanation.map_names) == 6
    assert np.abs(explanation.unexplained) <= 0.011 * np.abs(explanation.log_odds - explanation.baseline)
    assert explanation.summary["delta_chi2_line"][0] > 0 and explanation.summary["theta_E"][0] == 0
    random = explain(with_random_weights(system, seed=1), images, label=2)
    assert abs(agreement(explanation, random)[0]) < 0.3


def test_the_weights_of_the_system_are_not_changed(tmp_path):
    system = bundle()
    before = {name: value.clone() for name, value in system.network.state_dict().items()}
    other = with_random_weights(system, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in system.network.state_dict().items())
    assert not torch.equal(next(other.network.parameters()), next(system.network.parameters()))


def test_a_system_that_does_not_classify_is_refused():
    with pytest.raises(InputError, match="does not classify"):
        explain(bundle(AutoencoderConfig()), IMAGES)


def test_without_captum_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ConfigError, match=r"pip install 'darklens\[explain\]'"):
        explain(bundle(), IMAGES)


def test_captum_is_imported_on_demand(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    spec = importlib.util.spec_from_file_location("another_explain", module.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
