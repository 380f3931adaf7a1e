"""Instrument records against lenstronomy's, and the noise that follows from them."""

import math

import numpy as np
import pytest
import torch
from lenstronomy.SimulationAPI.observation_api import SingleBand
from lenstronomy.SimulationAPI.ObservationConfig.Euclid import Euclid
from lenstronomy.SimulationAPI.ObservationConfig.HST import HST
from lenstronomy.SimulationAPI.ObservationConfig.LSST import LSST

from darklens import populations
from darklens.populations.instruments import INSTRUMENTS
from darklens.simulate.detection import observe
from darklens.simulate.render import render
from darklens.simulate.truth import draw

REFERENCE = {
    "hst-wfc3-f160w": HST("WFC3_F160W", psf_type="GAUSSIAN"),
    "euclid-vis": Euclid("VIS"),
    "rubin-lsst-i": LSST("i"),
}
SAME = {
    "pixel_scale": "pixel_scale",
    "zero_point": "magnitude_zero_point",
    "sky_brightness": "sky_brightness",
    "exposure_time": "exposure_time",
    "n_exposures": "num_exposures",
    "read_noise": "read_noise",
}


@pytest.mark.parametrize("name", [*INSTRUMENTS])
def test_records_agree_with_lenstronomy(name):
    ours, theirs = INSTRUMENTS[name], REFERENCE[name].kwargs_single_band()
    for field, key in SAME.items():
        assert getattr(ours, field) == theirs[key], field
    if name != "hst-wfc3-f160w":  # lenstronomy gives the drizzled pixel's size, not the PSF's width
        assert ours.psf_fwhm == theirs["seeing"]
    band = SingleBand(**theirs, data_count_unit="e-")
    assert ours.background_rms == pytest.approx(float(band.background_noise), rel=1e-6)
    assert ours.rate(21.3) == pytest.approx(float(band.magnitude2cps(21.3)), rel=1e-12)


@pytest.mark.parametrize("name", ["realistic-hst", "realistic-euclid", "realistic-rubin"])
class TestRealistic:
    def test_the_instrument_fixes_pixels_and_psf(self, name):
        population = populations.get(name)
        record = population.noise.instrument
        assert population.field.pixel_scale == record.pixel_scale
        assert population.psf.sigma == pytest.approx(record.psf_fwhm / (2 * math.sqrt(2 * math.log(2))))
        other = populations.get(name, ["field.pixel_scale=0.07", "noise.n_exposures=2"])
        assert other.field.pixel_scale == 0.07 and other.noise.instrument.total_time == 2 * record.exposure_time

    def test_an_empty_sky_has_the_stated_noise(self, name):
        population = populations.get(name, ["stored=counts"])
        record = population.noise.instrument
        truth = {"exposure": np.array([record.total_time])}
        image = observe(population, torch.zeros(1, 300, 300), truth, seed=0, indices=[0]).numpy()
        assert image.std() == pytest.approx(record.background_rms, rel=0.02)
        assert image.mean() == pytest.approx(0, abs=5 * record.background_rms / 300)

    def test_magnitudes_are_total_brightness(self, name):
        # Faint: no lensing to speak of, and a field that holds all the light.
        population = populations.get(
            name,
            [
                "lens.theta_E=1.0e-6",
                "lens.gamma=0",
                "lens_light.magnitude=20",
                "lens_light.n=1",
                "lens_light.R_e=0.5",
                "source.magnitude=21",
                "source.n=1",
                "source.R_e=0.5",
                "conserve_mass=false",
            ],
        )
        rate = render(population, draw(population, 0, [0]), dtype=torch.float64)
        record = population.noise.instrument
        assert float(rate.sum()) == pytest.approx(record.rate(20.0) + record.rate(21.0), rel=0.01)

    def test_substructure_does_not_change_the_mass_inside_the_ring(self, name):
        plain, kept = populations.get(name, ["conserve_mass=false"]), populations.get(name)
        assert kept.conserve_mass
        before, after = draw(plain, 0, range(30)), draw(kept, 0, range(30))
        assert np.array_equal(before["theta_E"][::3], after["theta_E"][::3])
        assert (after["theta_E"] < before["theta_E"])[2::3].mean() > 0.7
        assert (after["theta_E"] < before["theta_E"])[1::3].all()
        assert after["theta_E"].min() > 0.5
