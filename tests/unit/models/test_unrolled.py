"""The unrolled fit: the tests of every system, and of its fit steps."""

import numpy as np
import pytest
import torch

from darklens.bundle import Bundle
from darklens.config import load
from darklens.errors import ConfigError
from darklens.export import export_onnx
from darklens.fit.macro import fit_macro
from darklens.models.unrolled import UnrolledResidualConfig
from darklens.models.zoo import build
from darklens.predict.backends import choose
from darklens.simulate.batch import simulate_batch
from darklens.training.recipe import Recipe, get

SMALL = ["field.n_pixels=100"]
CONFIG = UnrolledResidualConfig(population="common-test-i", overrides=SMALL, width=4, steps=3)


def make():
    torch.manual_seed(0)
    return build(CONFIG, n_pixels=100, pixel_scale=0.05, n_classes=3)


@pytest.fixture(scope="module")
def lenses():
    images, truth = simulate_batch(CONFIG.population, 3, range(6))
    return torch.from_numpy(images), torch.from_numpy(truth["label"]).long()


def test_output_is_finite_and_almost_independent_of_the_batch(lenses):
    model, images = make().eval(), lenses[0]
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    assert together.shape == (6, 3) and torch.isfinite(together).all()
    # The last bits of the initial fit depend on the batch size.
    torch.testing.assert_close(together, alone, rtol=0.02, atol=0.02)


def test_every_parameter_has_a_reproducible_gradient(lenses):
    def gradients():
        model = make().train()
        torch.nn.functional.cross_entropy(model(lenses[0]), lenses[1]).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    first, second = gradients(), gradients()
    assert [name for name, grad in first.items() if grad is None or not grad.any()] == []
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_with_full_trust_it_agrees_with_the_fit(lenses):
    model = make().eval()
    torch.nn.init.constant_(model.trust[-1].bias, 30.0)
    torch.nn.init.zeros_(model.trust[-1].weight)
    torch.nn.init.constant_(model.log_damping, np.log(1e-6))
    images, labels = lenses
    with torch.no_grad():
        residual, _, trust = model.residual(images).unbind(1)
    assert (trust == 1).all()
    smooth = labels == 0
    chi2 = residual[smooth].square().mean((1, 2))
    assert (
        (chi2 - fit_macro(images[smooth, 0], CONFIG.population).reduced_chi2).abs() < 0.1
    ).all()  # blocks of pixels there


def test_pixels_without_trust_do_not_affect_the_fit(lenses):
    """A bright spot biases the fit unless the trust in its pixels is low."""
    images = lenses[0][lenses[1] == 0].clone()
    images[:, :, 70:74, 48:52] += 0.5 * images.amax()
    uniform, selective = make().eval(), make().eval()
    for model, slope in ((uniform, 0.0), (selective, -8.0)):
        for layer in (model.trust[0], model.trust[2], model.trust[4]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        model.trust[0].weight.data[0, 0, 2, 2] = 1.0  # the residual, where positive
        model.trust[2].weight.data[0, 0, 2, 2] = 1.0
        model.trust[4].weight.data[0, 0] = slope
        torch.nn.init.constant_(model.trust[4].bias, 8.0)
    with torch.no_grad():
        residuals = [model.residual(images)[:, 0] for model in (uniform, selective)]
    outside = torch.ones(residuals[0].shape[-2:], dtype=torch.bool)
    outside[32:42, 20:30] = False
    chi2_uniform, chi2_selective = (residual[:, outside].square().mean() for residual in residuals)
    assert chi2_selective < 1.03 < chi2_uniform


def test_its_recipe_refuses_cropped_images():
    assert get("unrolled_residual").model.steps == 3
    tree = get("unrolled_residual").model_dump(mode="json", by_alias=True)
    tree["data"]["preprocess"]["crop"] = 96
    with pytest.raises(ConfigError, match="fits whole images"):
        load(Recipe, tree, name="r")


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="100 x 100 pixels, got 64 x 64"):
        make()(torch.rand(1, 1, 64, 64))


def test_it_is_neither_exported_nor_run_by_onnx(tmp_path):
    contract = Bundle.load("lens_residual").contract.model_copy(update={"model": CONFIG, "recipe": "unrolled_residual"})
    bundle = Bundle(contract, make())
    with pytest.raises(ConfigError, match="fits lenses iteratively"):
        export_onnx(bundle, tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="fits lenses iteratively"):
        choose("onnx", bundle, 3)
    assert choose("auto", bundle, 10**6) == "eager"
