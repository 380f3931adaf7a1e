"""Hubble Space Telescope."""

from darklens.simulate.instruments.record import Instrument

WFC3_F160W = Instrument(
    name="hst-wfc3-f160w",
    pixel_scale=0.08,
    psf_fwhm=0.15,
    zero_point=25.96,
    sky_brightness=22.3,
    exposure_time=5400.0,
    n_exposures=1,
    read_noise=4.0,
    references=(
        "Windhorst et al. 2011, ApJS 193, 27: FWHM of the F160W PSF (lenstronomy's 0.08 arcsec is the pixel's size)",
        "lenstronomy, SimulationAPI/ObservationConfig/HST.py, WFC3_F160W: the other numbers; 5400 s is an orbit",
    ),
)
