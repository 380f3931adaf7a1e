"""Vera C. Rubin Observatory."""

from darklens.simulate.instruments.record import Instrument

LSST_I = Instrument(
    name="rubin-lsst-i",
    pixel_scale=0.2,
    psf_fwhm=0.71,
    zero_point=27.79,
    sky_brightness=20.48,
    exposure_time=15.0,
    n_exposures=460,
    read_noise=10.0,
    references=(
        "Ivezic et al. 2019, ApJ 873, 111: the ten-year survey",
        "lenstronomy, SimulationAPI/ObservationConfig/LSST.py, band i, ten years: the same numbers",
    ),
)
