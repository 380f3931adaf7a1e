"""Physical constants and unit conversions; no other module defines G, c or the solar mass."""

import math

GRAVITATIONAL_CONSTANT_SI = 6.67430e-11  # m^3 kg^-1 s^-2, CODATA 2018
SPEED_OF_LIGHT_SI = 299_792_458.0  # m s^-1, exact
SOLAR_MASS_SI = 1.3271244e20 / GRAVITATIONAL_CONSTANT_SI  # kg, from the IAU 2015 nominal GM_sun in m^3 s^-2
MEGAPARSEC_SI = 3.0856775814913673e22  # m, IAU 2015
METRES_PER_KILOMETRE = 1e3

ARCSEC_PER_RADIAN = 180.0 * 3600.0 / math.pi
FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))  # of a Gaussian
