"""A source on a grid: cubic B-splines with linear amplitudes and a prior for smoothness.

It describes sources that no profile fits to the noise. The prior is Gaussian in the second differences of the
amplitudes (curvature regularisation: Suyu et al. 2006, MNRAS 371, 983); beyond the grid the source is dark.

A lens model that magnifies less has a larger source, which is smoother on the scale of a fixed grid. So that the prior
does not prefer such a model (the mass-sheet degeneracy: Falco, Gorenstein & Shapiro 1985, ApJ 289, L1), the grid moves
and grows with the pixels of the arcs, traced back to the source plane.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.errors import ConfigError
from darklens.physics.duals import Dual, slopes_of, value_of
from darklens.scene.profile import LightProfile, Parameter, Setting, coordinates

MIN_NODES, MAX_NODES = 4, 64  # along a side; more exhaust the memory


@dataclass(frozen=True)
class SourceFrame:
    """Centre and size of the image of rays in the source plane, and their derivatives.

    Attributes:
        x: Weighted mean (b,), arcsec.
        y: Weighted mean (b,), arcsec.
        size: Root of the weighted mean square distance from it (b,), arcsec.
        slopes: Derivatives of x, y and the logarithm of the size, by column of the parameter.
    """

    x: Float[Tensor, " b"]
    y: Float[Tensor, " b"]
    size: Float[Tensor, " b"]
    slopes: Mapping[int, tuple[Any, Any, Any]]

    def changes(self, at: tuple[Tensor, Tensor], by_x: Tensor, by_y: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield columns, and the change of the brightness (b, rows, columns) as the grid moves and grows.

        Args:
            at: Positions in the source plane (b, rows, columns), arcsec.
            by_x: Derivative of the brightness by x.
            by_y: Derivative of the brightness by y.
        """
        outward = (at[0] - self.x[:, None, None]) * by_x + (at[1] - self.y[:, None, None]) * by_y
        for column, slopes in self.slopes.items():
            shift_x, shift_y, growth = (slope[:, None, None] for slope in slopes)
            yield column, -(by_x * shift_x + by_y * shift_y + outward * growth)


class SourceGrid(LightProfile):
    """Surface brightness of a source as n x n cubic B-splines; an amplitude is about the brightness at its node.

    It cannot be compiled or read from YAML. `darklens.fit.source_reconstruction` fits it.

    Args:
        n: Number of nodes along a side.
        half_width: Half side of the grid, arcsec.
        core: Distance from the centre, arcsec, at which nodes are 1.4 times as far apart as at the centre; without it
            they are evenly spaced. Along each axis the nodes are even in asinh(distance / core).
        smoothness: Factor of the sum of squared second differences of the amplitudes in the deviance, in units of one
            over brightness squared.
        rays: Positions x and y of pixels of the arcs, arcsec, and their weights, whose sum is one, (3, m). If None,
            the grid does not depend on the lens.
        reference: Centre and size of the source, arcsec, (x, y, size) of the `SourceFrame` of these rays, for which the
            grid is as described by the other arguments.
        name: By default `source`.
        settings: Settings of the centre, which should be numbers, because the amplitudes can move the source too.

    Raises:
        ConfigError: If n, half_width or smoothness are out of bounds.
    """

    kind = "grid"
    positive = False
    parameters: ClassVar[Mapping[str, Parameter]] = coordinates(5.0, 0.1)

    def __init__(
        self,
        n: int,
        *,
        half_width: float,
        core: float | None = None,
        smoothness: float = 1.0,
        rays: Float[Tensor, "3 m"] | None = None,
        reference: tuple[float, float, float] = (0.0, 0.0, 1.0),
        name: str | None = None,
        **settings: Setting,
    ) -> None:
        super().__init__(name=name, **settings)
        if not MIN_NODES <= n <= MAX_NODES:
            raise ConfigError(f"A source grid needs n from {MIN_NODES} to {MAX_NODES}, got {n}.")
        if not (0 < half_width < math.inf and 0 < smoothness < math.inf):
            raise ConfigError(
                f"A source grid needs a positive half_width and smoothness, got {half_width:g} and {smoothness:g}."
            )
        self.n, self.half_width, self.smoothness, self.core = n, half_width, smoothness, core
        self.rays, self.reference = rays, reference
        self.n_basis = n * n

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and grid."""
        return (*super().structure, self.n, self.half_width, self.core)

    @property
    def smallest_spacing(self) -> float:
        """Distance of the two nodes next to the centre, arcsec."""
        return 2 * self._distance(1 / self.n)

    @property
    def reach(self) -> float:
        """Half side of the square beyond which all splines are zero, arcsec."""
        return self._distance(1 + 3 / self.n)

    def _distance(self, fraction: float) -> float:
        """Return the distance from the centre that is a fraction of the half width in units of the spacing."""
        if self.core is None:
            return fraction * self.half_width
        return self.core * math.sinh(fraction * math.asinh(self.half_width / self.core))

    def scaled(self, factor: float) -> "SourceGrid":
        """Return the profile for an image multiplied by a factor."""
        return self.smoothed(self.smoothness / factor**2)

    def smoothed(self, smoothness: float) -> "SourceGrid":
        """Return the profile with another smoothness."""
        profile = copy.copy(self)
        profile.smoothness = smoothness
        return profile

    def scale(self, frame: SourceFrame) -> Float[Tensor, "b 1 1"]:
        """Return lengths on the grid divided by those in the source plane."""
        return (self.reference[2] / frame.size)[:, None, None]

    def in_grid(self, at: tuple[Tensor, Tensor], frame: SourceFrame) -> tuple[Tensor, Tensor]:
        """Return positions in the source plane as positions on the grid of the reference, (b, rows, columns)."""
        scale, centre = self.scale(frame), (frame.x, frame.y)
        x, y = (r + scale * (v - c[:, None, None]) for r, v, c in zip(self.reference, at, centre, strict=False))
        return x, y

    def amplitude_prior(self) -> Float[Tensor, "l l"]:
        """Return the inverse covariance of the Gaussian prior on the amplitudes, float64."""
        return self.smoothness * curvature(self.n)

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the splines (b, n n, rows, columns), row by row of the grid from the lowest."""
        across, along = self._splines(y)[0], self._splines(x)[0]
        return (across[:, :, None] * along[:, None]).flatten(1, 2)

    def brightness(self, x: Any, y: Any, weights: Float[Tensor, "b l 1 1"], **values: Any) -> Any:
        """Return the brightness (b, rows, columns) for amplitudes; with derivatives for a `Dual` x and y."""
        (along, by_x), (across, by_y) = self._splines(value_of(x)), self._splines(value_of(y))
        grid = weights.reshape(-1, self.n, self.n)
        rows = torch.einsum("bij,bjhw->bihw", grid, along)
        value = (rows * across).sum(1)
        slopes = slopes_of(x), slopes_of(y)
        if not any(slopes):
            return value
        gradient = (torch.einsum("bij,bjhw->bihw", grid, by_x) * across).sum(1), (rows * by_y).sum(1)
        total: dict[str, Any] = {}
        for rate, part in zip(gradient, slopes, strict=True):
            for symbol, slope in part.items():
                total[symbol] = total.get(symbol, 0.0) + rate * slope
        return Dual.of(value, total)

    def _splines(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return the splines along an axis and their derivatives, (b, n, rows, columns)."""
        stretched, rate = position, torch.ones_like(position)
        edge = self.half_width
        if self.core is not None:
            stretched, rate = torch.asinh(position / self.core), torch.rsqrt(position**2 + self.core**2)
            edge = math.asinh(self.half_width / self.core)
        spacing = 2 * edge / self.n
        nodes = torch.arange(self.n, dtype=position.dtype, device=position.device) - (self.n - 1) / 2
        t = stretched[:, None] / spacing - nodes[:, None, None]
        inner, outer = (1 - t.abs()).clamp_min(0), (2 - t.abs()).clamp_min(0)
        slope = (2 * inner**2 - outer**2 / 2) * t.sign() * (rate[:, None] / spacing)
        return outer**3 / 6 - inner**3 * (4 / 6), slope


def curvature(n: int) -> Float[Tensor, "l l"]:
    """Return the matrix R for which a.R.a is the sum of squared second differences of n x n amplitudes a, float64.

    The differences are those along x and y and, twice, the mixed ones; amplitudes beyond the grid are zero.
    """
    eye = torch.eye(n, dtype=torch.float64)
    first = torch.nn.functional.pad(eye, (0, 0, 0, 1)) - torch.nn.functional.pad(eye, (0, 0, 1, 0))
    padded = torch.nn.functional.pad(first, (0, 0, 1, 0)) - torch.nn.functional.pad(first, (0, 0, 0, 1))
    second, slopes = padded.T @ padded, first.T @ first
    return torch.kron(second, eye) + torch.kron(eye, second) + 2 * torch.kron(slopes, slopes)
