"""The card of a mass profile: its parameters with units and bounds, and its source."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a profile.

    Args:
        symbol: Name of the keyword argument of the laws.
        unit: Its unit; "1" where it has none.
        low: Smallest physical value, in `unit`.
        high: Largest physical value, in `unit`.
        meaning: What it is.
    """

    symbol: str
    unit: str
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A mass profile centred at the origin: its laws and its card. All lengths are in arcsec.

    Args:
        potential: `(x, y, **parameters)` to psi in arcsec^2.
        deflection: `(x, y, **parameters)` to (alpha_x, alpha_y) in arcsec.
        convergence: `(x, y, **parameters)` to kappa, dimensionless.
        parameters: The parameters, in the order of the card.
        reference: Source of the laws.
    """

    potential: Callable[..., Tensor]
    deflection: Callable[..., tuple[Tensor, Tensor]]
    convergence: Callable[..., Tensor]
    parameters: tuple[Parameter, ...]
    reference: str
