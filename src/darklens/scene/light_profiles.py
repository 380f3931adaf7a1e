"""The light profiles of a scene; `source_grid` has one more."""

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from darklens.constants import constant
from darklens.errors import ConfigError
from darklens.physics import light
from darklens.scene.profile import ELLIPTICITY, LightProfile, Parameter, Setting, coordinates

_CENTRE = coordinates(2.0, 0.1)
_MAX_GAUSSIANS, _HIGHEST_ORDER = 50, 40  # of multi-Gaussian expansions and shapelets; more exhaust the memory


class Sersic(LightProfile):
    """Elliptical Sersic profile; its amplitude is the surface brightness at R_e.

    Args:
        b_n: "exact", or "linear" for agreement with lenstronomy (`darklens.physics.light.sersic_b_linear`).
        core: Radius in arcsec, added to the elliptical radius in quadrature. Without it, an image sampled at the pixel
            scale depends on the distance from the cusp to the nearest sample, and fits converge slowly.
        name: By default `source` or `light`, according to its role in the scene.
        settings: Settings by parameter name.
    """

    kind = "sersic"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "R_e": Parameter(unit="arcsec", low=0.01, high=10.0, start=0.2, step=0.5, log=True),
        "n": Parameter(low=0.3, high=8.0, start=1.5, step=0.4, log=True, prior=(math.log(1.5), 0.7)),
        **ELLIPTICITY,
        **_CENTRE,
    }

    def __init__(
        self,
        *,
        b_n: Literal["exact", "linear"] = "exact",
        core: float = 0.0,
        name: str | None = None,
        **settings: Setting,
    ) -> None:
        super().__init__(name=name, **settings)
        self.b_n, self.core = b_n, core

    @property
    def constants(self) -> Mapping[str, float]:
        """The core."""
        return {"core": self.core}

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and definition of b_n."""
        return (*super().structure, self.b_n)

    @property
    def has_cusp(self) -> bool:
        """Whether there is no core."""
        return not self.core

    def softened(self, core: float) -> "Sersic":
        """Return the profile with a core of at least `core`, arcsec."""
        profile = copy.copy(self)
        profile.core = max(core, self.core)
        return profile

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the brightness (b, 1, rows, columns)."""
        b = (light.sersic_b_linear if self.b_n == "linear" else light.sersic_b)(values["n"])
        return light.sersic_of_ellipticity(x, y, amplitude=1.0, b=b, **{**self.constants, **values})[:, None]


class MultiGaussian(LightProfile):
    """Concentric Gaussians of one ellipticity, with linear amplitudes of at least zero (Cappellari 2002).

    It describes galaxies whose profile no Sersic law fits to the noise. An amplitude is the brightness at the centre.

    Args:
        n: Number of Gaussians.
        smallest: Dispersion of the narrowest Gaussian, arcsec.
        largest: Dispersion of the widest; those between are evenly spaced in the logarithm.
        name: By default `source` or `light`, according to its role in the scene.
        settings: Settings by parameter name.
    """

    kind = "multi_gaussian"
    parameters: ClassVar[Mapping[str, Parameter]] = {**ELLIPTICITY, **_CENTRE}

    def __init__(
        self, n: int = 12, *, smallest: float = 0.02, largest: float = 4.0, name: str | None = None, **settings: Setting
    ) -> None:
        super().__init__(name=name, **settings)
        if not 1 <= n <= _MAX_GAUSSIANS or not 0 < smallest <= largest < math.inf:
            raise ConfigError(
                f"multi_gaussian needs n from 1 to {_MAX_GAUSSIANS} and 0 < smallest <= largest, got {n}, "
                f"{smallest:g} and {largest:g}."
            )
        self.n, self.smallest, self.largest = n, smallest, largest
        self.n_basis = n
        self.sigmas = torch.logspace(math.log10(smallest), math.log10(largest), n, dtype=torch.float64)

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and Gaussians."""
        return (*super().structure, self.n, self.smallest, self.largest)

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the Gaussians (b, n, rows, columns), narrowest first."""
        squared = light.elliptical_square(x, y, **values)[:, None]
        sigmas = constant(tuple(self.sigmas.tolist()), squared.dtype, squared.device)
        return torch.exp(squared * (-0.5 * sigmas**-2)[:, None, None])


class Shapelets(LightProfile):
    """Gauss-Hermite shapelets up to order n_max: (n_max + 1)(n_max + 2)/2 linear amplitudes (Refregier 2003).

    Args:
        n_max: Highest order.
        name: By default `source` or `light`, according to its role in the scene.
        settings: Settings by parameter name; `beta` is the scale in arcsec.
    """

    kind = "shapelets"
    positive = False
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "beta": Parameter(unit="arcsec", low=0.01, high=2.0, start=0.1, step=0.3, log=True),
        **_CENTRE,
    }

    def __init__(self, n_max: int, *, name: str | None = None, **settings: Setting) -> None:
        super().__init__(name=name, **settings)
        if not 0 <= n_max <= _HIGHEST_ORDER:
            raise ConfigError(f"shapelets need n_max from 0 to {_HIGHEST_ORDER}, got {n_max}.")
        self.n_max = n_max
        self.n_basis = (n_max + 1) * (n_max + 2) // 2

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and order."""
        return (*super().structure, self.n_max)

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the basis functions (b, n_basis, rows, columns), sorted by total order, then by order along y."""
        return light.shapelets(x, y, beta=values["beta"], n_max=self.n_max)
