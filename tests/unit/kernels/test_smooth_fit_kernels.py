"""The kernels of fits against PyTorch in float64."""

import copy

import pytest
import torch
from kernels import must_build
from scene_population import TREE, survey

from darklens import populations
from darklens.fit.detector import Detector, detector_of
from darklens.fit.model import KeptSlopes, Model
from darklens.fit.noise import Noise, normal_equations
from darklens.fit.scene_lens import SceneLens
from darklens.fit.smooth import PSF, SmoothLens
from darklens.kernels import smooth_fit
from darklens.kernels.library import library
from darklens.simulate.truth import draw

pytestmark = pytest.mark.skipif(not must_build(), reason="no g++, or a processor without AVX2")

FREE_LIGHT = ["source.R_e={kind: uniform, low: 0.2, high: 0.4}", "source.n={kind: uniform, low: 0.8, high: 3}"]


@pytest.fixture(autouse=True)
def built():
    library()  # fits of few images would not load it
    torch.manual_seed(0)


@pytest.fixture(params=[1, 3])
def threads(request):
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(usual)


def without_kernels(monkeypatch):
    monkeypatch.setattr(smooth_fit, "usable", lambda *_: False)


def matrix(rows, columns, taps):
    """Return a banded matrix; some runs are shorter, as at the edge of an image."""
    band = torch.zeros(rows, columns)
    for row in range(rows):
        first = row * (columns - taps) // max(1, rows - 1)
        band[row, first : first + taps - row % 3] = torch.rand(taps - row % 3) + 0.1
    return band


@pytest.mark.parametrize(("rows", "columns", "taps"), [(16, 16, 5), (17, 40, 4), (48, 110, 16), (75, 77, 3)])
def test_observing_is_the_product_with_the_matrix(rows, columns, taps, threads):
    one, brightness = matrix(rows, columns, taps), torch.randn(2, 3, columns, columns)
    result = smooth_fit.observe(smooth_fit.Band.of(one), brightness, [4, 0, 2], 5)
    expected = one.double() @ brightness.double() @ one.double().T
    assert result.shape == (2, 5, rows, rows)
    torch.testing.assert_close(result[:, [4, 0, 2]].double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def test_a_band_contains_the_whole_matrix():
    one = matrix(9, 30, 6)
    band = smooth_fit.Band.of(one)
    expanded = torch.zeros_like(one)
    for row, first in enumerate(band.first):
        expanded[row, first : first + band.values.shape[1]] = band.values[row]
    assert torch.equal(expanded, one) and band.values.shape[1] == 6


LINEAR = ["source.b_n=linear", *FREE_LIGHT]
# Each kind of lens takes a compiler seconds. The sweep has the other centres.
LENSES = [
    pytest.param(changes, centred, id=f"{name}-{centred}", marks=[pytest.mark.sweep] * (centred != tested))
    for name, changes, tested in (("fixed", [], True), ("free", FREE_LIGHT, False), ("linear", LINEAR, True))
    for centred in (True, False)
]


@pytest.mark.parametrize(("changes", "centred"), LENSES)
@pytest.mark.parametrize("block", [1, 2])
def test_images_and_derivatives_agree_with_the_laws(changes, centred, block, threads):
    population = populations.get("common-test-i", ["field.n_pixels=60", *changes])
    lens = SmoothLens(population, centred=centred)
    model = Model(lens, Detector(population, crop=40, block=block))
    parameters = lens.from_truth(draw(population, 3, range(5)))
    if not centred:
        parameters[:, -2:] = torch.randn(5, 2) * 0.1
    unknown = torch.cat([parameters, torch.randn(5, 2)], 1)
    torch.testing.assert_close(model.light(unknown), compared_with_laws(model, unknown), rtol=2e-6, atol=1e-5)


def test_scenes_with_a_point_mass_agree_with_the_laws(tmp_path):
    scene = copy.deepcopy(TREE["scene"])
    del scene["mass"]["multipole4"]  # which takes a compiler longest
    population = survey(tmp_path, scene=scene)
    lens = SceneLens(population)
    model = Model(lens, detector_of(population, crop=40), "points")
    others = torch.tensor([0.3, 0.1, 0.01, 0.33, 0.21]).expand(5, -1)
    compared_with_laws(model, torch.cat([lens.from_truth(draw(population, 3, range(5))), others], 1))


def compared_with_laws(model, unknown):
    """Return the images of the kernels, whose slopes are compared too."""
    light, slopes = model.expected(unknown)
    exact_light, exact = model.expected(unknown.double())  # float64: PyTorch
    largest = exact.abs().amax((2, 3), keepdim=True)
    torch.testing.assert_close(slopes / largest, exact / largest, rtol=0, atol=3e-4, check_dtype=False)
    torch.testing.assert_close(light, exact_light, rtol=2e-5, atol=1e-4, check_dtype=False)
    return light


def test_a_pixel_at_the_lens_centre_is_finite():
    population = populations.get("common-test-i", ["field.n_pixels=59"])  # odd: a pixel at the centre
    model = Model(SmoothLens(population, centred=False), Detector(population, crop=59))
    parameters = model.lens.from_truth(draw(population, 3, [0]))
    light, slopes = model.expected(torch.cat([parameters, torch.zeros(1, 2)], 1))
    assert light.isfinite().all() and slopes.isfinite().all()


@pytest.mark.parametrize("unknowns", [1, 2, 9, 13])
@pytest.mark.parametrize("side", [3, 16, 25])
def test_normal_equations(unknowns, side, threads):
    slopes, weight, residual = (
        torch.randn(3, unknowns, side, side),
        torch.rand(3, side, side),
        torch.randn(3, side, side),
    )
    curvature, rhs = normal_equations(slopes, weight, residual)
    exact = slopes.double().flatten(2)
    weighted = exact * weight.double().flatten(1)[:, None]
    torch.testing.assert_close(curvature, weighted @ exact.mT, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(rhs, (weighted @ residual.double().flatten(1)[..., None])[..., 0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mapped", [True, False], ids=["exposure map", "uniform exposure"])
def test_deviance_and_weight(mapped, threads, monkeypatch):
    shape = (3, 1, 1) if not mapped else (3, 21, 21)
    noise = Noise(5.0, 4, 0.5 + torch.rand(shape), torch.tensor([0.0, 1.0, 20.0]), torch.zeros(3, 1, 1))
    images, model = torch.rand(3, 21, 21) * 30 - 6, torch.rand(3, 21, 21) * 30 - 6  # some negative
    gain = torch.tensor([[0.0, 0.0], [-3.0, 0.1], [1.0, -2.0]])
    slopes = torch.randn(3, 5, 21, 21)
    result = noise.deviance(images, model, gain), noise.weight(model, gain)
    equations = noise.normal_equations(slopes, images, model, gain)
    without_kernels(monkeypatch)
    exact = Noise(5.0, 4, noise.exposure.double(), noise.extra.double(), noise.variance.double())
    expected = (
        exact.deviance(images.double(), model.double(), gain.double()),
        exact.weight(model.double(), gain.double()),
    )
    for value, exact_value in zip(result, expected, strict=True):
        torch.testing.assert_close(value, exact_value, rtol=5e-6, atol=0, check_dtype=False)
    exact_equations = exact.normal_equations(slopes.double(), images.double(), model.double(), gain.double())
    for value, exact_value in zip(equations, exact_equations, strict=True):
        largest = exact_value.flatten(1).abs().amax(1).reshape(-1, *[1] * (exact_value.dim() - 1))
        torch.testing.assert_close(value / largest, exact_value / largest, rtol=0, atol=2e-6, check_dtype=False)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "eager"])
def test_normal_equations_of_some_of_the_derivatives_need_no_copy_of_them(kernels, monkeypatch):
    if not kernels:
        without_kernels(monkeypatch)
    noise = Noise(5.0, 4, torch.ones(3, 1, 1), torch.zeros(3), torch.zeros(3, 1, 1))
    images, model, slopes = torch.rand(3, 20, 20), torch.rand(3, 20, 20), torch.randn(7, 5, 20, 20)
    gain, rows = torch.zeros(3, 2), torch.tensor([6, 0, 3])
    selected = noise.normal_equations(slopes, images, model, gain, rows=rows)
    for value, expected in zip(selected, noise.normal_equations(slopes[rows], images, model, gain), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("crop_and_block", [(96, 2), (50, 1)])
def test_a_free_width_of_the_psf_has_the_light_and_derivatives_of_the_expansion(crop_and_block, threads):
    crop, block = crop_and_block
    population = populations.get("common-test-i", ["psf.known=false"])
    lens = SmoothLens(population, centred=False)
    model = Model(lens, Detector(population, crop=crop, block=block), "points")
    others = torch.tensor([0.3, 0.1, 0.01, 0.33, 0.21]).expand(4, -1)
    parameters = torch.cat([lens.from_truth(draw(population, 3, range(4))), others], 1)
    parameters[:, lens.names.index(PSF)] = torch.tensor([-0.2, 0.0, 0.1, 0.3])
    light = compared_with_laws(model, parameters)
    torch.testing.assert_close(model.light(parameters), light, rtol=1e-6, atol=1e-6 * float(light.abs().max()))
    noise = Noise(5.0, 4, torch.ones(4, 1, 1), torch.zeros(4), torch.zeros(4, 1, 1))
    nothing_kept = KeptSlopes(None, torch.arange(4))
    made = model.linearised(parameters, light + 1, noise, model.gain(parameters), nothing_kept)
    _, slopes = model.expected(parameters)
    _, rhs = noise.normal_equations(slopes, light + 1, light, model.gain(parameters))
    assert torch.equal(made.light, light) and torch.equal(made.rhs, rhs)


@pytest.mark.parametrize("kept", [True, False], ids=["derivatives kept", "not kept"])
def test_linearising_gives_the_model_its_derivatives_and_their_normal_equations(kept, threads):
    population = populations.get("common-test-i")
    lens = SmoothLens(population, centred=False)
    model = Model(lens, Detector(population, crop=96, block=2), "line", blur=0.03)
    line = torch.tensor([0.1, 0.02, 0.05, 0.4, -0.3, 0.7, 0.2]).expand(4, -1)
    free = torch.cat([lens.from_truth(draw(population, 3, range(4))), line], 1)
    noise = Noise(5.0, 4, torch.ones(4, 1, 1), torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.zeros(4, 1, 1))
    light, slopes = model.expected(free)
    images, gain, rows = light + torch.randn_like(light), model.gain(free), torch.tensor([5, 0, 3, 6])
    maps = torch.full((7, *slopes.shape[1:]), torch.nan)
    result = model.linearised(free, images, noise, gain, KeptSlopes(maps if kept else None, rows))
    curvature, rhs = noise.normal_equations(slopes, images, light, gain)
    for value, expected in zip(result, (light, curvature, rhs), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(maps[rows], slopes) if kept else maps.isnan().all()
    assert maps[[1, 2, 4]].isnan().all()


def test_nan_in_the_model_gives_a_nan_deviance():
    noise = Noise(5.0, 4, torch.ones(2, 1, 1), torch.zeros(2), torch.zeros(2, 1, 1))
    images, model = torch.full((2, 20, 20), 7.0), torch.full((2, 20, 20), 7.0)
    model[0, 3, 3] = torch.nan
    deviance = noise.deviance(images, model, torch.zeros(2, 2))
    assert deviance[0].isnan() and deviance[1] == pytest.approx(0, abs=1e-2)


def test_fits_with_gradients_run_in_pytorch():
    slopes = torch.randn(2, 3, 16, 16, requires_grad=True)
    curvature, _ = normal_equations(slopes, torch.ones(2, 16, 16), torch.ones(2, 16, 16))
    assert curvature.requires_grad
    with torch.no_grad():
        assert smooth_fit.normal_equations(slopes, torch.ones(2, 16, 16), torch.ones(2, 16, 16)) is not None


def test_fits_have_the_same_bits_with_any_number_of_threads():
    population, usual, results = populations.get("common-test-i"), torch.get_num_threads(), []
    model = Model(SmoothLens(population), Detector(population, crop=96, block=2))
    unknown = torch.cat([model.lens.from_truth(draw(population, 3, range(5))), torch.zeros(5, 2)], 1)
    noise = Noise(5.0, 4, torch.ones(5, 1, 1), torch.zeros(5), torch.zeros(5, 1, 1))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            light, slopes = model.expected(unknown)
            weight = noise.weight(light, model.gain(unknown))
            deviance = noise.deviance(light.flip(1), light, model.gain(unknown))
            results.append([light, slopes, weight, deviance, *normal_equations(slopes, weight, light.flip(1) - light)])
    finally:
        torch.set_num_threads(usual)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
