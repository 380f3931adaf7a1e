"""From redshifts and masses to angles, on astropy's cosmology."""

import math

from darklens.units import (
    ARCSEC_PER_RADIAN,
    GRAVITATIONAL_CONSTANT_SI,
    MEGAPARSEC_SI,
    SOLAR_MASS_SI,
    SPEED_OF_LIGHT_SI,
)


def point_mass_theta_E(
    *,
    mass: float,
    z_lens: float,
    z_source: float,
    H0: float = 70.0,
    Om0: float = 0.3,
    legacy_distances: bool = False,
) -> float:
    """Return the Einstein radius of a point mass, sqrt(4 G M D_LS / (c^2 D_L D_S)), in a flat universe.

    Args:
        mass: Mass in solar masses.
        z_lens: Redshift of the lens.
        z_source: Redshift of the source.
        H0: Hubble constant in km/s/Mpc.
        Om0: Matter density today in units of the critical one.
        legacy_distances: Use luminosity distances and D_LS = D_S - D_L, as DeepLenseSim does, in place of
            angular-diameter distances. Wrong, and kept for parity with data made that way.

    Returns:
        The Einstein radius in arcsec.

    Raises:
        ValueError: If the source is not behind the lens, or a mass or redshift is not positive.
    """
    if mass <= 0 or z_lens <= 0:
        raise ValueError(f"mass and z_lens must be positive, got {mass} and {z_lens}")
    if z_source <= z_lens:
        raise ValueError(f"the source (z = {z_source}) must lie behind the lens (z = {z_lens})")
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(H0=H0, Om0=Om0)
    if legacy_distances:
        d_lens = cosmology.luminosity_distance(z_lens).value
        d_source = cosmology.luminosity_distance(z_source).value
        d_lens_source = d_source - d_lens
    else:
        # In a flat universe comoving distances subtract.
        to_lens, to_source = (cosmology.comoving_distance(z).value for z in (z_lens, z_source))
        d_lens, d_source = to_lens / (1 + z_lens), to_source / (1 + z_source)
        d_lens_source = (to_source - to_lens) / (1 + z_source)
    schwarzschild = 4 * GRAVITATIONAL_CONSTANT_SI * mass * SOLAR_MASS_SI / SPEED_OF_LIGHT_SI**2
    return ARCSEC_PER_RADIAN * math.sqrt(schwarzschild * d_lens_source / (d_lens * d_source * MEGAPARSEC_SI))
