"""Our forward model on real images of Common Test I: with the right parameters only photon noise is left.

The parameters were found by least squares and are rounded; docs/populations.md has chi2 of refined ones.
"""

import math

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.simulate.render import render
from darklens.simulate.truth import columns

POPULATION = populations.get("common-test-i")

pytestmark = pytest.mark.realdata

# theta_E, gamma1, gamma2, source x and y, source ellipticity components, then the line: mass, x, y, length, angle.
FITTED = {
    "no/1": [1.224326, 0.08465, -0.012436, -0.007301, -0.014889, 0.10147, -0.003377],
    "no/2": [1.428777, 0.278933, -0.017523, 0.036242, 0.021878, 0.165892, -0.000204],
    "no/3": [1.626349, 0.200719, -0.022714, -0.361872, 0.039519, 0.194947, -0.013694],
    "vort/1": [
        *(1.359369, 0.06422, -0.012023, -0.041386, -0.018167, 0.172934, -0.031046),
        *(0.063095, 0.160303, 0.666307, 1.716498, 3.457504),
    ],
}
SKY = 10
EXPECTED = 1.0
SCATTER = math.sqrt(2 / 150**2)  # of chi2/N


def counts_of(path):
    """Undo the min-max scaling exactly: pixel values are whole numbers of photons over their largest."""
    pixels = np.load(path, allow_pickle=False).astype(float).squeeze()
    counts = pixels / np.diff(np.unique(pixels)).min()
    np.testing.assert_allclose(counts, counts.round(), atol=1e-6)
    counts = counts.round()
    corner = np.concatenate([counts[:12, :12], counts[-12:, -12:], counts[:12, -12:], counts[-12:, :12]])
    return counts + min((0, 1), key=lambda least: abs(corner.mean() + least - SKY))


def truth_of(values, **changes):
    theta_E, gamma1, gamma2, x, y, e1, e2, *line = values
    e = math.hypot(e1, e2)
    row = dict.fromkeys(columns(POPULATION), 0.0) | {
        "theta_E": theta_E,
        "gamma1": gamma1,
        "gamma2": gamma2,
        "source_x": x,
        "source_y": y,
        "source_amplitude": 100.0,
        "source_R_e": 0.5,
        "source_n": 1.5,
        "source_q": (1 - e) / (1 + e),
        "source_angle": math.atan2(e2, e1) / 2,
        "line_length": 1.0,
    }
    row |= dict(zip(["line_mass", "line_x", "line_y", "line_length", "line_angle"], line, strict=False)) | changes
    truth = {name: np.array([value]) for name, value in row.items() if not name.startswith("point")}
    return truth | {name: np.zeros((1, 0)) for name in columns(POPULATION) if name.startswith("point")}


def model_of(values, **changes):
    return render(POPULATION, truth_of(values, **changes), dtype=torch.float64)[0].numpy() + SKY


def chi2_per_pixel(counts, model):
    return float(((counts - model) ** 2 / model).mean())


@pytest.mark.parametrize("name", FITTED)
def test_only_photon_noise_is_left(realdata, name):
    counts = counts_of(realdata / "common-test-i" / f"{name}.npy")
    assert chi2_per_pixel(counts, model_of(FITTED[name])) == pytest.approx(EXPECTED, abs=3 * SCATTER)


def test_the_smooth_lens_alone_does_not_explain_a_vortex(realdata):
    counts = counts_of(realdata / "common-test-i" / "vort" / "1.npy")
    assert chi2_per_pixel(counts, model_of(FITTED["vort/1"], line_mass=0.0)) > EXPECTED + 30 * SCATTER


def test_the_counts_say_when_a_parameter_is_off(realdata):
    counts = counts_of(realdata / "common-test-i" / "no" / "1.npy")
    best = chi2_per_pixel(counts, model_of(FITTED["no/1"]))
    for change in ({"theta_E": 1.234}, {"source_R_e": 0.52}, {"source_n": 1.6}, {"gamma1": 0.095}):
        assert chi2_per_pixel(counts, model_of(FITTED["no/1"], **change)) > best + 2 * SCATTER, change
