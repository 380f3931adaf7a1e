"""What an instrument record holds, and the count rates that follow from it."""

import math
from dataclasses import dataclass


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
        references: Where the numbers come from.
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
