"""Evidence maps: masses that were put in are found where they are, as heavy as they are; a smooth lens has none."""

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.errors import ConfigError
from darklens.fit.evidence import evidence_maps
from darklens.fit.macro import fit_macro
from darklens.simulate import render
from darklens.simulate.batch import simulate_batch
from darklens.simulate.truth import draw

POPULATION = populations.get("common-test-i")
SMOOTH = [0, 3, 6, 9]


def expected_counts(**columns):
    """Return images of smooth lenses without noise, with some columns replaced."""
    truth = {name: value for name, value in draw(POPULATION, 5, SMOOTH).items() if name != "label"}
    return truth, render.render(POPULATION, truth | columns)


def beside_the_brightest():
    """Return a place in each image that is half as bright as its brightest."""
    _, images = expected_counts()
    axis = (np.arange(150) - 74.5) * 0.05
    half = (images - images.amax((1, 2), keepdim=True) / 2).abs().flatten(1).argmin(1).numpy()
    return axis[half % 150], axis[half // 150]


def at(maps, pixel_scale, x, y):
    n = maps.shape[-1]
    column, row = (np.rint(v / pixel_scale + (n - 1) / 2).astype(int) for v in (x, y))
    return maps[torch.arange(len(maps)), torch.from_numpy(row), torch.from_numpy(column)]


def peak(maps, pixel_scale):
    n = maps.shape[-1]
    best = maps.flatten(1).argmax(1).numpy()
    return (best % n - (n - 1) / 2) * pixel_scale, (best // n - (n - 1) / 2) * pixel_scale


def test_a_point_mass_is_weighed_and_found():
    truth, _ = expected_counts()
    x, y = beside_the_brightest()
    # The middle of a pixel of the map.
    x, y = ((np.floor(v / 0.1) + 0.5) * 0.1 for v in (x, y))
    mass = 0.001 * truth["theta_E"] ** 2  # so small that deflection and light are in proportion
    points = {"point_theta_E": np.sqrt(mass)[:, None], "point_x": x[:, None], "point_y": y[:, None]}
    _, counts = expected_counts(**points)
    fit = fit_macro(counts, POPULATION)
    found = evidence_maps(counts, fit, POPULATION)
    assert found.pixel_scale == pytest.approx(0.1) and found.delta_chi2_point.shape == (4, 48, 48)
    weighed = at(found.point_mass, found.pixel_scale, x, y)
    np.testing.assert_allclose(weighed, mass, rtol=0.15)
    # Without noise, all of chi2 is due to the mass.
    gain = at(found.delta_chi2_point, found.pixel_scale, x, y)
    np.testing.assert_allclose(gain, fit.reduced_chi2 * (150**2 - 9), rtol=0.25)
    found_x, found_y = peak(found.delta_chi2_point, found.pixel_scale)
    assert np.hypot(found_x - x, found_y - y).max() < 2 * 0.087


def test_a_line_mass_is_weighed_and_found():
    ones = np.ones(len(SMOOTH))
    truth, _ = expected_counts()
    mass = 0.01 * truth["theta_E"] ** 2
    line = {"line_mass": mass, "line_x": 0.5 * ones, "line_y": -0.5 * ones}
    _, counts = expected_counts(**line, line_length=2.0 * ones, line_angle=np.pi / 4 * ones)
    found = evidence_maps(counts, fit_macro(counts, POPULATION), POPULATION)
    x, y = peak(found.delta_chi2_line, found.line_scale)
    assert np.hypot(x - 0.5, y + 0.5).max() < 0.5
    place = np.full(4, 0.5), np.full(4, -0.5)
    np.testing.assert_allclose(at(found.line_mass, found.line_scale, *place), mass, rtol=0.3)
    np.testing.assert_allclose(at(found.line_angle, found.line_scale, *place), np.pi / 4, atol=0.4)


def test_a_smooth_lens_has_no_evidence_and_substructure_has():
    images, truth = simulate_batch(POPULATION, 11, range(60))
    images = torch.from_numpy(images)[:, 0]
    found = evidence_maps(images, fit_macro(images, POPULATION), POPULATION)
    most = torch.maximum(found.delta_chi2_point.amax((1, 2)), found.delta_chi2_line.amax((1, 2)))
    smooth = torch.from_numpy(truth["label"] == 0)
    # The largest of some hundred independent chi2 of one degree of freedom.
    assert float(most[smooth].max()) < 25
    assert float(most[~smooth].min()) > 25


def test_the_unit_of_the_image_does_not_matter():
    images, _ = simulate_batch(POPULATION, 11, [1])
    one = torch.from_numpy(images)[:, 0]
    found = [evidence_maps(some, fit_macro(some, POPULATION), POPULATION) for some in (one, 700 * one + 5)]
    torch.testing.assert_close(found[0].delta_chi2_point, found[1].delta_chi2_point, rtol=0.05, atol=1)
    torch.testing.assert_close(found[0].point_mass, found[1].point_mass, rtol=0.05, atol=1e-3)


def test_a_source_that_never_moves_is_refused():
    still = populations.get("common-test-i", ["source.position={kind: cartesian, x: 0.1, y: 0.1}"])
    images, _ = simulate_batch(still, 1, [0])
    images = torch.from_numpy(images)[:, 0]
    with pytest.raises(ConfigError, match="varies the source's position"):
        evidence_maps(images, fit_macro(images, still), still)
