"""Telescopes and bands as frozen records: pixel scale, PSF, zero point, sky, exposure, read noise."""

import math
from dataclasses import dataclass

from darklens.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """One camera and band, with the exposures that a survey stacks.

    Args:
        name: Name in population files.
        pixel_scale: arcsec.
        psf_fwhm: Full width at half maximum of a Gaussian point-spread function, arcsec.
        zero_point: AB magnitude that gives one electron per second.
        sky_brightness: AB magnitudes per square arcsec.
        exposure_time: Seconds of one exposure.
        n_exposures: Exposures in the stack.
        read_noise: Electrons per pixel and exposure.
        references: Sources of the numbers.
    """

    name: str
    pixel_scale: float
    psf_fwhm: float
    zero_point: float
    sky_brightness: float
    exposure_time: float
    n_exposures: int
    read_noise: float
    references: tuple[str, ...]

    @property
    def total_time(self) -> float:
        """Seconds of all exposures together."""
        return self.exposure_time * self.n_exposures

    @property
    def sky_rate(self) -> float:
        """Sky in electrons per second and pixel."""
        return self.rate(self.sky_brightness) * self.pixel_scale**2

    @property
    def background_rms(self) -> float:
        """Noise of an empty pixel in electrons per second: sky and read-out."""
        variance = self.sky_rate * self.total_time + self.n_exposures * self.read_noise**2
        return math.sqrt(variance) / self.total_time

    def rate(self, magnitude: float) -> float:
        """Return the electrons per second of a source of this AB magnitude."""
        return float(10 ** (-0.4 * (magnitude - self.zero_point)))


HST_WFC3_F160W = Instrument(
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

EUCLID_VIS = Instrument(
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

RUBIN_LSST_I = Instrument(
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

INSTRUMENTS: Registry[Instrument] = Registry("instrument")
for _record in (HST_WFC3_F160W, EUCLID_VIS, RUBIN_LSST_I):
    INSTRUMENTS.add(_record.name, _record)
