"""Angles from masses and redshifts in a flat Lambda-CDM universe, with the distances of astropy."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darklens.units import (
    ARCSEC_PER_RADIAN,
    GRAVITATIONAL_CONSTANT_SI,
    MEGAPARSEC_SI,
    METRES_PER_KILOMETRE,
    SOLAR_MASS_SI,
    SPEED_OF_LIGHT_SI,
)


def _check_redshifts(z_lens: float, z_source: float) -> None:
    if z_lens <= 0:
        raise ValueError(f"z_lens must be positive, got {z_lens}")
    if z_source <= z_lens:
        raise ValueError(f"the source (z = {z_source}) must lie behind the lens (z = {z_lens})")


def _angular_diameter_distances(cosmology: Any, z_lens: float, z_source: float) -> tuple[float, float, float]:
    """Return D_L, D_S and D_LS in Mpc."""
    # In a flat universe comoving distances subtract.
    to_lens, to_source = (cosmology.comoving_distance(z).value for z in (z_lens, z_source))
    return to_lens / (1 + z_lens), to_source / (1 + z_source), (to_source - to_lens) / (1 + z_source)


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
        legacy_distances: Use luminosity distances and D_LS = D_S - D_L, as DeepLenseSim does, instead of
            angular-diameter distances. Wrong; kept for parity with DeepLenseSim.

    Returns:
        The Einstein radius in arcsec.

    Raises:
        ValueError: If the source is not behind the lens, or a mass or redshift is not positive.
    """
    if mass <= 0:
        raise ValueError(f"mass must be positive, got {mass}")
    _check_redshifts(z_lens, z_source)
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(H0=H0, Om0=Om0)
    if legacy_distances:
        d_lens = cosmology.luminosity_distance(z_lens).value
        d_source = cosmology.luminosity_distance(z_source).value
        d_lens_source = d_source - d_lens
    else:
        d_lens, d_source, d_lens_source = _angular_diameter_distances(cosmology, z_lens, z_source)
    schwarzschild = 4 * GRAVITATIONAL_CONSTANT_SI * mass * SOLAR_MASS_SI / SPEED_OF_LIGHT_SI**2
    return ARCSEC_PER_RADIAN * math.sqrt(schwarzschild * d_lens_source / (d_lens * d_source * MEGAPARSEC_SI))


def nfw_angles(
    *,
    mass: float | NDArray[np.float64],
    concentration: float | NDArray[np.float64],
    z_lens: float,
    z_source: float,
    H0: float = 70.0,
    Om0: float = 0.3,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the angles of NFW haloes of mass m200, in a flat universe.

    m200 is the mass within r200, inside which the mean density is 200 times the critical one at z_lens, so
    r200^3 = G m200 / (100 H(z_lens)^2) and R_s = r200 / c. The projected mass within R_s is (1 - ln 2) / (ln(1 + c) -
    c / (1 + c)) of m200 (Wright & Brainerd 2000, eq. 13), and deflects by 4 G / c^2 times it, over R_s.

    Args:
        mass: m200 in solar masses, not in solar masses over h.
        concentration: c = r200 / R_s; broadcasts with `mass`.
        z_lens: Redshift of the haloes.
        z_source: Redshift of the source.
        H0: Hubble constant in km/s/Mpc.
        Om0: Matter density today in units of the critical one.

    Returns:
        R_s and alpha_Rs, the deflection at R_s before any truncation, both in arcsec.

    Raises:
        ValueError: If the source is not behind the lens, or a mass, concentration or redshift is not positive.
    """
    mass, concentration = np.broadcast_arrays(np.asarray(mass, np.float64), np.asarray(concentration, np.float64))
    if not ((mass > 0).all() and (concentration > 0).all()):
        raise ValueError("masses and concentrations must be positive")
    _check_redshifts(z_lens, z_source)
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(H0=H0, Om0=Om0)
    d_lens, d_source, d_lens_source = _angular_diameter_distances(cosmology, z_lens, z_source)
    hubble = cosmology.H(z_lens).value * METRES_PER_KILOMETRE / MEGAPARSEC_SI  # per second
    gravity = GRAVITATIONAL_CONSTANT_SI * SOLAR_MASS_SI * mass  # m^3 s^-2
    R_s = np.cbrt(gravity / (100 * hubble**2)) / concentration  # m
    projected = (1 - math.log(2)) / (np.log1p(concentration) - concentration / (1 + concentration))
    alpha = 4 * gravity * projected / (SPEED_OF_LIGHT_SI**2 * R_s) * d_lens_source / d_source
    # numpy turns zero-dimensional arrays into scalars; the result is always an array.
    return np.asarray(ARCSEC_PER_RADIAN * R_s / (d_lens * MEGAPARSEC_SI)), np.asarray(ARCSEC_PER_RADIAN * alpha)
