"""First-order gains by a perturber at each position, and the mass that would be detected there."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.fit.perturber_profiles import DEFAULT_THRESHOLD, PerturberKind, Redshifts, profile_of
from darklens.fit.scene_fit import FitResult, coarse
from darklens.fit.scene_solver import data_of
from darklens.scene.observation import Observation
from darklens.scene.scene import Scene

REACH = 0.3  # arcsec, of the map beyond the arcs
_SPACING = 0.1  # arcsec, of the positions of the map
_FAINTEST = 1.0  # brightness of the arcs, in units of the noise of a pixel of the map
_SEPARATION = 0.3  # arcsec, of peaks
_BATCH = 16  # positions
_REDSHIFTS = Redshifts()


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
    redshifts: Redshifts = _REDSHIFTS,
    spacing: float = _SPACING,
) -> GainMap:
    """Return by how much a perturber at each position would lower chi2, to first order in its mass.

    A perturber with deflection alpha changes the sampled brightness by minus the scalar product of alpha and the
    gradient of the source. This image, observed by the detector, is a further linear parameter of the fit: its gain is
    that of the residuals, marginalised over all parameters and amplitudes of the scene. Images of more than 72 pixels a
    side are binned.

    Args:
        result: Fit of the smooth scene.
        perturber: "tnfw", "point" or "line".
        redshifts: Redshifts, and the concentration of haloes.
        spacing: Minimum spacing of the positions, arcsec, in multiples of the sampling distance.

    Raises:
        ConfigError: If there is no such perturber.
    """
    profile = profile_of(perturber)(redshifts)
    result = result.scaled(1 / result.observation.unit)
    scene, observation = result.scene, result.observation
    binned = coarse(replace(observation, image=np.where(observation.used, observation.image - result.model, 0.0)))
    detector, data = binned.detector(), data_of(binned)
    parameters = scene.pack(result.parameters).float()
    amplitudes = torch.tensor([[result.amplitudes[name] for name in scene.amplitude_names]], dtype=torch.float32)
    internal = scene.internal(parameters)
    x, y = detector.x.float(), detector.y.float()
    basis = detector.observe(scene.basis(parameters, x, y))[0]
    free = ~(torch.tensor(scene.positive) & (amplitudes[0] <= 0))
    slopes = detector.observe(scene.slopes(internal, amplitudes, detector))[0]
    root = data.weights.flatten().sqrt()
    planes = torch.cat([slopes, basis[free]]).flatten(1) * root
    residual = data.images.flatten() * root
    mean, prior = scene.prior(internal.double())
    away = torch.nn.functional.pad(prior * (internal[0].double() - mean), (0, len(planes) - len(prior)))
    curvature = (planes @ planes.T).double()
    curvature.diagonal()[: len(prior)] += prior
    unit = curvature.diagonal().clamp_min(1e-300).rsqrt()
    inverse = torch.linalg.pinv(curvature * unit[:, None] * unit, hermitian=True, rtol=1e-9) * unit[:, None] * unit
    rhs = (planes @ residual).double() - away
    gradient_x, gradient_y = scene.source_gradient(parameters, amplitudes, x, y)
    rows, columns, inside = _positions(scene, parameters, amplitudes, binned, x, y, spacing)
    at = torch.nonzero(inside)
    at_rows, at_columns = rows[at[:, 0]], columns[at[:, 1]]
    n_y, n_x = y.shape[-2], x.shape[-1]
    step = float(x[0, 1] - x[0, 0])
    offset_x = (torch.arange(2 * n_x - 1, dtype=torch.float32) - (n_x - 1)) * step
    offset_y = (torch.arange(2 * n_y - 1, dtype=torch.float32) - (n_y - 1)) * step
    log_gain, log_mass, log_error = [], [], []
    for shape in profile.shapes:
        values = {name: torch.tensor([[[value]]]) for name, value in shape.items()}
        alpha = profile.law(offset_x[None], offset_y[:, None], **values, **profile.constants)
        windows = [a[0].unfold(0, n_y, 1).unfold(1, n_x, 1) for a in alpha]
        scores, informations = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
        for start in range(0, len(at), _BATCH):
            chosen = slice(start, start + _BATCH)
            first, second = n_y - 1 - at_rows[chosen], n_x - 1 - at_columns[chosen]
            change = -(gradient_x * windows[0][first, second] + gradient_y * windows[1][first, second])
            plane = detector.observe(change).flatten(1) * root
            overlap = (plane @ planes.T).double()
            scores.append((plane @ residual).double() - overlap @ (inverse @ rhs))
            total = (plane * plane).sum(1).double()
            informations.append((total - ((overlap @ inverse) * overlap).sum(1)).maximum(1e-6 * total).clamp_min(1e-30))
        score, information = torch.cat(scores), torch.cat(informations)
        log_gain.append(score.clamp_min(0) ** 2 / information)
        log_mass.append((score.clamp_min(0) / information).log10() + shape["log10_mass"])
        log_error.append(shape["log10_mass"] - information.log10() / 2)
    gain, best = torch.stack(log_gain).max(0)
    mass = torch.stack(log_mass).gather(0, best[None])[0]

    def grid(values: Tensor) -> Float[np.ndarray, "rows columns"]:
        plane = np.full(tuple(inside.shape), np.nan)
        plane[inside.numpy()] = values.numpy()
        return plane

    return GainMap(
        x=x[0, columns].double().numpy(),
        y=y[rows, 0].double().numpy(),
        gain=grid(gain),
        log10_mass=grid(torch.where(gain > 0, mass, torch.nan)),
        log10_error=np.stack([grid(v) for v in log_error]),
        shape=grid(best.double()),
        shapes=profile.shapes,
    )


def _positions(
    scene: Scene,
    parameters: Tensor,
    amplitudes: Tensor,
    observation: Observation,
    x: Tensor,
    y: Tensor,
    spacing: float,
) -> tuple[Tensor, Tensor, Bool[Tensor, "rows columns"]]:
    """Return rows and columns of sampling positions, and which of these are in the image and near the arcs."""
    n = scene.source.n_amplitudes
    basis = scene.basis(parameters, x, y, lens_light=False)
    light = (basis * amplitudes[:, :n, None, None]).sum(1)
    noise = float(np.median(observation.noise_map[observation.used]))
    step = float(x[0, 1] - x[0, 0])
    reach = max(1, round(REACH / step))
    bright = (light > _FAINTEST * noise).float()[None]
    near = torch.nn.functional.max_pool2d(bright, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
    half_y, half_x = (n * observation.pixel_scale / 2 for n in observation.image.shape)
    near &= (x.abs() < half_x) & (y.abs() < half_y)
    stride = max(1, round(spacing / step))
    rows, columns = (torch.arange(((n - 1) % stride) // 2, n, stride) for n in near.shape)
    return rows, columns, near[rows][:, columns]


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
    redshifts: Redshifts = _REDSHIFTS,
) -> SensitivityMap:
    """Return the mass that would be detected at each position, to first order in the mass.

    The expected delta chi2 of a perturber is the square of mass over error, marginalised over all parameters of the
    scene (`gain_map`). The first order overestimates delta chi2 of haloes whose deflection exceeds the PSF.

    Args:
        result: Fit of the smooth scene.
        perturber: "tnfw", "point" or "line".
        threshold: Threshold of delta chi2, by default `DEFAULT_THRESHOLD`.
        redshifts: Redshifts, and the concentration of haloes.

    Raises:
        ConfigError: If there is no such perturber.
    """
    gains = gain_map(result, perturber=perturber, redshifts=redshifts)
    limit = DEFAULT_THRESHOLD[perturber] if threshold is None else threshold
    return SensitivityMap(gains.x, gains.y, gains.detectable(limit), limit)
