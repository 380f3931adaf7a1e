"""First-order gains by a perturber at each position, and the mass that would be detected there."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.fit.fit_result import FitResult
from darklens.fit.perturber_profiles import DEFAULT_THRESHOLD, REDSHIFTS, PerturberKind, Redshifts, profile_of
from darklens.fit.scene_fit import coarse
from darklens.fit.scene_solver import data_of, detector_of
from darklens.scene.imaging import fast_length

REACH = 0.3  # arcsec, of the map beyond the arcs
_SPACING = 0.1  # arcsec, of the positions of the map
_FAINTEST = 1.0  # brightness of the arcs, in units of the noise of a pixel of the map
_SEPARATION = 0.3  # arcsec, of peaks
_BATCH = 16  # positions


@dataclass(frozen=True, eq=False)
class GainMap:
    """First-order gains by a perturber at each position of a grid; NaN far from the arcs.

    Attributes:
        x: Positions of the columns, arcsec.
        y: Positions of the rows, arcsec.
        gain: Reduction of chi2 by the best mass; zero where the best mass is negative.
        log10_mass: log10 of this mass, in M_sun; NaN where it is negative.
        log10_error: log10 of the standard deviation of the mass, in M_sun, for each of the k shapes.
        shape: Index of the shape with the largest gain.
        shapes: Shapes and reference masses.
    """

    x: Float[np.ndarray, " columns"] = field(repr=False)
    y: Float[np.ndarray, " rows"] = field(repr=False)
    gain: Float[np.ndarray, "rows columns"] = field(repr=False)
    log10_mass: Float[np.ndarray, "rows columns"] = field(repr=False)
    log10_error: Float[np.ndarray, "k rows columns"] = field(repr=False)
    shape: Float[np.ndarray, "rows columns"] = field(repr=False)
    shapes: tuple[dict[str, float], ...]

    def detectable(self, threshold: float) -> Float[np.ndarray, "rows columns"]:
        """Return log10 of the mass, in M_sun, whose expected gain is `threshold` at each position."""
        half = math.log10(threshold) / 2
        at = np.array([shape["log10_mass"] for shape in self.shapes])
        if len(set(at)) == 1:
            return np.asarray(self.log10_error.min(0) + half)
        # log10 of mass over error is interpolated linearly between the two reference masses.
        ratio = at[:, None, None] - self.log10_error
        slope = (ratio[1] - ratio[0]) / (at[1] - at[0])
        return np.asarray(at[0] + (half - ratio[0]) / slope)

    def peaks(self, n: int) -> list[dict[str, float]]:
        """Return parameters of a perturber at the highest n peaks that are at least 0.3 arcsec apart."""
        gain = np.nan_to_num(self.gain, nan=0.0)
        peaks: list[dict[str, float]] = []
        while len(peaks) < n and gain.max() > 0:
            row, column = np.unravel_index(gain.argmax(), gain.shape)
            x, y = float(self.x[column]), float(self.y[row])
            mass = min(max(float(self.log10_mass[row, column]), 7.5), 11.0)
            shape = self.shapes[int(self.shape[row, column])]
            peaks.append(shape | {"log10_mass": mass, "centre_x": x, "centre_y": y})
            gain[np.hypot(self.x - x, (self.y - y)[:, None]) < _SEPARATION] = 0.0
        return peaks


@torch.no_grad()
def gain_map(
    result: FitResult,
    *,
    perturber: PerturberKind = "tnfw",
    redshifts: Redshifts = REDSHIFTS,
    spacing: float = _SPACING,
    interpolate: bool = True,
) -> GainMap:
    """Return by how much a perturber at each position would lower chi2, to first order in its mass.

    A perturber with deflection alpha changes the sampled brightness by minus the scalar product of alpha and the
    gradient of the source. This image, observed by the detector, is a further linear parameter of the fit: its gain is
    that of the residuals, marginalised over all parameters and amplitudes of the scene. Images of more than 72 pixels a
    side are binned.

    Args:
        result: Fit of the smooth scene.
        perturber: As for `find_perturbers`.
        redshifts: Redshifts, and the concentration of haloes.
        spacing: Minimum spacing of the positions, arcsec, in multiples of the sampling distance.
        interpolate: Whether the error of the mass is computed at every second row and column and interpolated between
            them (0.01 to 0.03 dex; three times as fast), or everywhere.

    Raises:
        ConfigError: If there is no such perturber.
    """
    profile = profile_of(perturber)(redshifts)
    smooth = _Smooth(result.scaled(1 / result.observation.unit))
    x, y, gradient = smooth.x, smooth.y, smooth.gradient
    rows, columns, inside = smooth.positions(spacing)
    row, column = (index[inside] for index in torch.meshgrid(rows, columns, indexing="ij"))
    lattice = _Lattice(inside, 2 if interpolate else 1)
    node_row, node_column = rows[lattice.rows], columns[lattice.columns]
    # The products of a perturber's plane with the other planes and the residuals are correlations of its deflection.
    size = _doubled(gradient[0])
    products = [torch.fft.rfft2(g * smooth.transposed, s=size) for g in gradient]
    gains, masses, errors = [], [], []
    for shape in profile.shapes:
        values = {name: torch.tensor([[[value]]]) for name, value in shape.items()}
        alpha = profile.law(*_offsets(x, y), **values, **profile.constants)
        along, across = (p * torch.fft.rfft2(a[0]).conj() for p, a in zip(products, alpha, strict=True))
        correlation = -torch.fft.irfft2(along + across, s=size)
        overlap, score = correlation[:-1], correlation[-1]
        total = smooth.squared_norms(alpha, node_row, node_column)
        information = lattice.interpolated(smooth.marginal(total, overlap[:, node_row, node_column]))
        score = (score[row, column] - smooth.predicted(overlap[:, row, column])).clamp_min(0)
        gains.append(score**2 / information)
        masses.append((score / information).log10() + shape["log10_mass"])
        errors.append(shape["log10_mass"] - information.log10() / 2)
    gain, best = torch.stack(gains).max(0)
    mass = torch.stack(masses).gather(0, best[None])[0]

    def grid(values: Tensor) -> Float[np.ndarray, "rows columns"]:
        plane = np.full(tuple(inside.shape), np.nan)
        plane[inside.numpy()] = values.numpy()
        return plane

    return GainMap(
        x=x[0, columns].double().numpy(),
        y=y[rows, 0].double().numpy(),
        gain=grid(gain),
        log10_mass=grid(torch.where(gain > 0, mass, torch.nan)),
        log10_error=np.stack([grid(v) for v in errors]),
        shape=grid(best.double()),
        shapes=profile.shapes,
    )


def _doubled(plane: Tensor) -> tuple[int, int]:
    """Return the lengths of Fourier transforms for correlations without overlap of the edges."""
    height, width = plane.shape
    return fast_length(2 * height - 1), fast_length(2 * width - 1)


def _offsets(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return all differences of two sampling positions, x (1, n) and y (n, 1), in the order of a Fourier transform."""
    step = float(x[0, 1] - x[0, 0])
    height, width = _doubled(x + y)
    return torch.fft.fftfreq(width, 1 / (width * step))[None], torch.fft.fftfreq(height, 1 / (height * step))[:, None]


class _Smooth:
    """The smooth scene of a fit, linearised, and the residuals, in larger pixels (`coarse`).

    Args:
        result: Fit in units of the noise.

    Attributes:
        x: Sampling positions (1, width), arcsec.
        y: Sampling positions (height, 1), arcsec.
        gradient: Gradient of the source brightness there, along x and y.
        transposed: The k planes of the linearised scene and the residuals, times the transpose of the detector's matrix
            and of the weights (k + 1, height, width).
    """

    def __init__(self, result: FitResult) -> None:
        scene, observation = result.scene, result.observation
        residual = replace(observation, image=np.where(observation.used, observation.image - result.model, 0.0))
        self._observation = coarse(residual)
        self._detector, data = detector_of(self._observation, scene), data_of(self._observation)
        parameters = scene.pack(result.parameters).float()
        amplitudes = torch.tensor([[result.amplitudes[name] for name in scene.amplitude_names]], dtype=torch.float32)
        internal = scene.internal(parameters)
        self.x, self.y = self._detector.x.float(), self._detector.y.float()
        basis = scene.basis(parameters, self.x, self.y)
        self._source = (basis * amplitudes[:, :, None, None])[:, : scene.source.n_amplitudes].sum(1)
        free = ~(torch.tensor(scene.positive) & (amplitudes[0] <= 0))
        slopes = self._detector.observe(scene.slopes(internal, amplitudes, self._detector))[0]
        self._root = data.weights.flatten().sqrt()
        planes = torch.cat([slopes, self._detector.observe(basis)[0][free]]).flatten(1) * self._root
        residuals = data.images.flatten() * self._root
        mean, prior = scene.prior(internal.double())
        away = torch.nn.functional.pad(prior * (internal[0].double() - mean), (0, len(planes) - len(prior)))
        curvature = (planes @ planes.T).double()
        curvature.diagonal()[: len(prior)] += prior
        if scene.amplitude_prior is not None:
            by_amplitude = scene.amplitude_prior[free][:, free]
            curvature[len(prior) :, len(prior) :] += by_amplitude
            away[len(prior) :] = by_amplitude @ amplitudes[0][free].double()
        unit = curvature.diagonal().clamp_min(1e-300).rsqrt()
        inverse = torch.linalg.pinv(curvature * unit[:, None] * unit, hermitian=True, rtol=1e-9)
        self._inverse = inverse * unit[:, None] * unit
        self._step = self._inverse @ ((planes @ residuals).double() - away)
        self.gradient = tuple(g[0] for g in scene.source_gradient(parameters, amplitudes, self.x, self.y))
        images = (torch.cat([planes, residuals[None]]) * self._root).reshape(-1, *data.images.shape[1:])
        with torch.enable_grad():
            light = torch.zeros(len(images), *self.gradient[0].shape, requires_grad=True)
            (self.transposed,) = torch.autograd.grad(self._detector.observe(light), light, images)

    def positions(self, spacing: float) -> tuple[Tensor, Tensor, Bool[Tensor, "rows columns"]]:
        """Return rows and columns of sampling positions, and which of these are in the image and near the arcs."""
        noise = float(np.median(self._observation.noise_map[self._observation.used]))
        step = float(self.x[0, 1] - self.x[0, 0])
        reach = max(1, round(REACH / step))
        bright = (self._source > _FAINTEST * noise).float()[None]
        near = torch.nn.functional.max_pool2d(bright, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
        half_y, half_x = (n * self._observation.pixel_scale / 2 for n in self._observation.image.shape)
        near &= (self.x.abs() < half_x) & (self.y.abs() < half_y)
        stride = max(1, round(spacing / step))
        rows, columns = (torch.arange(((n - 1) % stride) // 2, n, stride) for n in near.shape)
        return rows, columns, near[rows][:, columns]

    def squared_norms(self, alpha: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor) -> Float[Tensor, " n"]:
        """Return the sum of squares, in units of the noise, of the change of the image by each of n perturbers.

        Args:
            alpha: Deflection at all offsets (`_offsets`).
            rows: Rows of their positions.
            columns: Columns of their positions.
        """
        height, width = self.gradient[0].shape
        # In increasing order, the offset zero is in the middle.
        windows = [torch.fft.fftshift(a[0]).unfold(0, height, 1).unfold(1, width, 1) for a in alpha]
        middle_y, middle_x = (n // 2 for n in alpha[0].shape[1:])
        norms = [torch.zeros(0)]
        for start in range(0, len(rows), _BATCH):
            batch = slice(start, start + _BATCH)
            first, second = middle_y - rows[batch], middle_x - columns[batch]
            change = self.gradient[0] * windows[0][first, second] + self.gradient[1] * windows[1][first, second]
            norms.append((self._detector.observe(change).flatten(1) * self._root).square().sum(1))
        return torch.cat(norms).double()

    def marginal(self, total: Float[Tensor, " n"], overlap: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
        """Return the squared norms of planes, less their part that the scene can take up."""
        by_plane = overlap.T.double()
        taken = ((by_plane @ self._inverse) * by_plane).sum(1)
        marginal: Tensor = (total - taken).maximum(1e-6 * total).clamp_min(1e-30)
        return marginal

    def predicted(self, overlap: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
        """Return the products of planes and that part of the residuals that the scene can take up."""
        predicted: Tensor = overlap.T.double() @ self._step
        return predicted


class _Lattice:
    """A part of the rows and columns of a grid, from which smooth functions are interpolated.

    Args:
        inside: Positions of the grid that matter (rows, columns).
        stride: Distance of the rows and columns.

    Attributes:
        rows: Rows of the m nodes that these positions need.
        columns: Columns of these nodes.
    """

    def __init__(self, inside: Bool[Tensor, "rows columns"], stride: int) -> None:
        self._inside = inside
        self._weights = [self._hat(n, stride) for n in inside.shape]
        self._used = self._weights[0].T @ inside.double() @ self._weights[1] > 0
        first, second = torch.nonzero(self._used).T
        nodes = [w.argmax(0) for w in self._weights]  # each node is one position of the grid
        self.rows, self.columns = nodes[0][first], nodes[1][second]

    @staticmethod
    def _hat(n: int, stride: int) -> Float[Tensor, "n m"]:
        """Return weights of linear interpolation at n positions from m of them, which are counted from both ends."""
        first_half = np.arange(0, (n + 1) // 2, stride)
        nodes = np.unique([*first_half, *(n - 1 - first_half)])
        return torch.from_numpy(np.stack([np.interp(np.arange(n), nodes, row) for row in np.eye(len(nodes))], 1))

    def interpolated(self, values: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """Return a positive function at the positions inside, from its values at the nodes; linear in its logarithm."""
        plane = torch.zeros(self._used.shape, dtype=torch.float64)
        plane[self._used] = values.log()
        return (self._weights[0] @ plane @ self._weights[1].T)[self._inside].exp()


@dataclass(frozen=True, eq=False)
class SensitivityMap:
    """The mass of a perturber that would be detected at each position; NaN far from the arcs.

    Attributes:
        x: Positions of the columns, arcsec.
        y: Positions of the rows, arcsec.
        log10_mass: log10 of the mass, in M_sun, whose expected delta chi2 is the threshold.
        threshold: Threshold of delta chi2.
    """

    x: Float[np.ndarray, " columns"] = field(repr=False)
    y: Float[np.ndarray, " rows"] = field(repr=False)
    log10_mass: Float[np.ndarray, "rows columns"] = field(repr=False)
    threshold: float


def sensitivity_map(
    result: FitResult,
    *,
    perturber: PerturberKind = "tnfw",
    threshold: float | None = None,
    redshifts: Redshifts = REDSHIFTS,
) -> SensitivityMap:
    """Return the mass that would be detected at each position, to first order in the mass.

    The expected delta chi2 of a perturber is the square of mass over error, marginalised over all parameters of the
    scene (`gain_map`). The first order overestimates delta chi2 of haloes whose deflection exceeds the PSF.

    Args:
        result: Fit of the smooth scene.
        perturber: As for `find_perturbers`.
        threshold: Threshold of delta chi2, by default `DEFAULT_THRESHOLD`.
        redshifts: Redshifts, and the concentration of haloes.

    Raises:
        ConfigError: If there is no such perturber.
    """
    gains = gain_map(result, perturber=perturber, redshifts=redshifts, interpolate=False)
    limit = DEFAULT_THRESHOLD[perturber] if threshold is None else threshold
    return SensitivityMap(gains.x, gains.y, gains.detectable(limit), limit)
