"""Euclid."""

from darklens.simulate.instruments.record import Instrument

VIS = Instrument(
    name="euclid-vis",
    pixel_scale=0.101,
    psf_fwhm=0.16,
    zero_point=25.72,
    sky_brightness=22.3,
    exposure_time=566.0,
    n_exposures=4,
    read_noise=4.2,
    references=(
        "Euclid Collaboration 2024, arXiv:2405.13496: zero point and sky; arXiv:2405.13493: read noise",
        "lenstronomy, SimulationAPI/ObservationConfig/Euclid.py, VIS: the same numbers",
    ),
)
