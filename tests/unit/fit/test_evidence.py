"""Evidence maps recover the mass and the position of perturbers, and show none in smooth lenses."""

import math

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.errors import ConfigError
from darklens.fit.evidence import LINE_STEP, evidence_maps, line_centres, shape_of, templates_of
from darklens.fit.fitter import fitter_of
from darklens.fit.macro import fit_macro
from darklens.physics.profiles import line
from darklens.simulate import render
from darklens.simulate.batch import simulate_batch
from darklens.simulate.truth import draw

POPULATION = populations.get("common-test-i")
SMOOTH = [0, 3, 6, 9]


def expected_counts(**columns):
    """Return the true columns and noise-free images of smooth lenses, with `columns` replaced."""
    truth = {name: value for name, value in draw(POPULATION, 5, SMOOTH).items() if name != "label"}
    return truth, render.render(POPULATION, truth | columns)


def positions_at_half_peak():
    """Return a position in each image with half the peak brightness, arcsec."""
    _, images = expected_counts()
    axis = (np.arange(150) - 74.5) * 0.05
    half = (images - images.amax((1, 2), keepdim=True) / 2).abs().flatten(1).argmin(1).numpy()
    return axis[half % 150], axis[half // 150]


def value_at(maps, pixel_scale, x, y):
    n = maps.shape[-1]
    column, row = (np.rint(v / pixel_scale + (n - 1) / 2).astype(int) for v in (x, y))
    return maps[torch.arange(len(maps)), torch.from_numpy(row), torch.from_numpy(column)]


def peak(maps, pixel_scale):
    n = maps.shape[-1]
    best = maps.flatten(1).argmax(1).numpy()
    return (best % n - (n - 1) / 2) * pixel_scale, (best // n - (n - 1) / 2) * pixel_scale


def test_mass_and_position_of_a_point_mass_are_recovered():
    truth, _ = expected_counts()
    x, y = positions_at_half_peak()
    # Centre of a pixel of the map.
    x, y = ((np.floor(v / 0.1) + 0.5) * 0.1 for v in (x, y))
    mass = 0.001 * truth["theta_E"] ** 2  # small enough for the linear regime
    points = {"point_theta_E": np.sqrt(mass)[:, None], "point_x": x[:, None], "point_y": y[:, None]}
    _, counts = expected_counts(**points)
    fit = fit_macro(counts, POPULATION)
    evidence = evidence_maps(counts, fit, POPULATION)
    assert evidence.pixel_scale == pytest.approx(0.1) and evidence.delta_chi2_point.shape == (4, 48, 48)
    recovered = value_at(evidence.point_mass, evidence.pixel_scale, x, y)
    np.testing.assert_allclose(recovered, mass, rtol=0.15)
    # Without noise, chi2 is due to the mass alone.
    delta_chi2 = value_at(evidence.delta_chi2_point, evidence.pixel_scale, x, y)
    np.testing.assert_allclose(delta_chi2, fit.reduced_chi2 * (150**2 - 9), rtol=0.25)
    peak_x, peak_y = peak(evidence.delta_chi2_point, evidence.pixel_scale)
    assert np.hypot(peak_x - x, peak_y - y).max() < 2 * 0.087


def test_mass_position_and_angle_of_a_line_mass_are_recovered():
    ones = np.ones(len(SMOOTH))
    truth, _ = expected_counts()
    mass = 0.01 * truth["theta_E"] ** 2
    line = {"line_mass": mass, "line_x": 0.5 * ones, "line_y": -0.5 * ones}
    _, counts = expected_counts(**line, line_length=2.0 * ones, line_angle=np.pi / 4 * ones)
    evidence = evidence_maps(counts, fit_macro(counts, POPULATION), POPULATION)
    x, y = peak(evidence.delta_chi2_line, evidence.line_scale)
    assert np.hypot(x - 0.5, y + 0.5).max() < 0.5
    position = np.full(4, 0.5), np.full(4, -0.5)
    np.testing.assert_allclose(value_at(evidence.line_mass, evidence.line_scale, *position), mass, rtol=0.3)
    np.testing.assert_allclose(value_at(evidence.line_angle, evidence.line_scale, *position), np.pi / 4, atol=0.4)


def test_a_smooth_lens_has_no_evidence_and_substructure_has():
    images, truth = simulate_batch(POPULATION, 11, range(60))
    images = torch.from_numpy(images)[:, 0]
    evidence = evidence_maps(images, fit_macro(images, POPULATION), POPULATION)
    largest = torch.maximum(evidence.delta_chi2_point.amax((1, 2)), evidence.delta_chi2_line.amax((1, 2)))
    smooth = torch.from_numpy(truth["label"] == 0)
    # The largest of a few hundred independent chi2 with one degree of freedom.
    assert float(largest[smooth].max()) < 25
    assert float(largest[~smooth].min()) > 25


def test_evidence_does_not_depend_on_the_unit_of_the_image():
    images, _ = simulate_batch(POPULATION, 11, [1])
    one = torch.from_numpy(images)[:, 0]
    first, second = [
        evidence_maps(scaled, fit_macro(scaled, POPULATION), POPULATION) for scaled in (one, 700 * one + 5)
    ]
    torch.testing.assert_close(first.delta_chi2_point, second.delta_chi2_point, rtol=0.05, atol=1)
    torch.testing.assert_close(first.point_mass, second.point_mass, rtol=0.05, atol=1e-3)


@pytest.mark.usefixtures("in_pytorch")
def test_a_population_with_a_fixed_source_position_raises():
    fixed_source = populations.get("common-test-i", ["source.position={kind: cartesian, x: 0.1, y: 0.1}"])
    images, _ = simulate_batch(fixed_source, 1, [0])
    images = torch.from_numpy(images)[:, 0]
    with pytest.raises(ConfigError, match="varies the source's position"):
        evidence_maps(images, fit_macro(images, fixed_source), fixed_source)


def test_maps_of_points_do_not_depend_on_the_batch():
    templates = templates_of(fitter_of("common-test-i"))
    generator = torch.Generator().manual_seed(0)
    difference, weight = torch.randn(5, 48, 48, generator=generator), torch.rand(5, 48, 48, generator=generator)
    slopes = torch.randn(5, 9, 48, 48, generator=generator)
    whole = templates.points(difference, weight, slopes)
    for i in range(5):
        part = templates.points(difference[i : i + 1], weight[i : i + 1], slopes[i : i + 1])
        for value, expected in zip(part, whole, strict=True):
            torch.testing.assert_close(value[0], expected[i], rtol=1e-4, atol=1e-3 * float(expected[i].abs().amax()))


def test_templates_of_lines_are_rows_of_point_masses():
    """One line of the bank: its deflection, inner products and norm, from point masses along the analytic line."""
    templates = templates_of(fitter_of("common-test-i"))
    bank, points, grid = templates._lines, templates._points, templates.grid
    n, shape, length, angle = len(line_centres()), 13, 2.0, 5 * math.pi / 8
    assert [float(v) for v in shape_of(torch.tensor(shape))] == pytest.approx([length, angle])
    row, column = 4, 7
    index = (shape * n + row) * n + column
    alpha_x, alpha_y = (bank._sums(component)[index] for component in points.deflections())
    x, y = (v.flatten() for v in grid.coordinates())
    unit = {"mass": torch.ones(()), "length": torch.tensor(length), "angle": torch.tensor(angle)}
    from_x, from_y = x - line_centres()[column], y - line_centres()[row]
    expected = line.deflection(from_x, from_y, **unit)
    across = (from_y * math.cos(angle) - from_x * math.sin(angle)).abs()
    away = (across > 0.4) | (torch.hypot(from_x, from_y) > length / 2 + 0.4)
    for component, analytic in zip((alpha_x, alpha_y), expected, strict=True):
        torch.testing.assert_close(component[away], analytic[away], rtol=0.02, atol=0.01)

    generator = torch.Generator().manual_seed(0)
    along, across = torch.randn(2, 3, 2, len(x), generator=generator)
    sums = (alpha_x * along + alpha_y * across).sum(-1)
    products = bank.products(points.products(along, across))[..., index]
    torch.testing.assert_close(products, sums, rtol=1e-3, atol=1e-3 * float(sums.abs().max()))
    xx, xy, yy = torch.rand(3, 3, len(x), generator=generator)
    quadratic = (alpha_x**2 * xx + 2 * alpha_x * alpha_y * xy + alpha_y**2 * yy).sum(-1)
    torch.testing.assert_close(bank.norms(xx, xy, yy)[:, index], quadratic, rtol=1e-4, atol=0)


def test_the_mass_of_a_faint_line_is_recovered():
    """A line that is one of the templates, in images without noise, given the true smooth lens."""
    mass, length, angle, at_x, at_y = 0.002, 2.0, math.pi / 8, 0.25, 0.5
    x, y = np.full(4, at_x), np.full(4, at_y)
    columns = {"line_mass": np.full(4, mass), "line_x": x, "line_y": y}
    columns |= {"line_length": np.full(4, length), "line_angle": np.full(4, angle)}
    _, smooth = expected_counts()
    _, with_line = expected_counts(**columns)
    maps = evidence_maps(with_line, fit_macro(smooth, POPULATION), POPULATION)
    k = len(line_centres()) // 2
    row, column = k + round(at_y / LINE_STEP), k + round(at_x / LINE_STEP)
    np.testing.assert_allclose(maps.line_mass[:, row, column], mass, rtol=0.06)
