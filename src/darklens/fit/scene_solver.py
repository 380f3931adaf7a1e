"""Levenberg-Marquardt fits of scenes to batches of images, with linear amplitudes solved for in each step.

The deviance is chi2 plus the penalty of the Gaussian priors. The amplitudes are eliminated by variable projection
(Golub & Pereyra 1973) in the approximation of Kaufman (1975): a step solves the normal equations of parameters and
amplitudes together, and the amplitudes are then solved for exactly at the new parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.constants import constant
from darklens.scene.compiled import CompiledScene
from darklens.scene.imaging import Detector
from darklens.scene.observation import Observation
from darklens.scene.scene import Scene

CONVERGED = 0.1
"""A fit has converged if an undamped step within the bounds is predicted to lower the deviance by less than this."""

DAMPING_START, DAMPING_DECREASE, DAMPING_INCREASE = 1e-2, 0.2, 5.0
_SMALLEST_DAMPING, _LARGEST_DAMPING = 1e-9, 1e8
_BOUND_ROUNDS = 6
_LONGEST_STEP = 3.0  # maximum change in one step, in units of `Parameter.step`
_UNDAMPED = 1e-6  # relative to a diagonal element: the precision of the float32 derivatives
_EXCHANGES_PER_AMPLITUDE = 4  # limit for non-negative amplitudes
_SLOPE_TOLERANCE = 1e-9  # relative to the largest term
_RIDGE = 1e-10  # relative to a diagonal element; makes degenerate amplitudes solvable
# Inverse variance of a Gaussian prior on amplitudes that may be negative, relative to a diagonal element: prevents
# shapelets from fitting noise.
_REGULARISATION = 1e-3
_MAX_TOGETHER = 200  # amplitudes of scenes of which several fits run together
_GRID_SAMPLES = 2  # along a pixel, with a source grid: structure of about the size of a pixel


@dataclass
class Data:
    """A batch of b images and their inverse variances.

    Attributes:
        images: Sky-subtracted images (b, rows, columns).
        weights: Inverse variances (b, rows, columns); zero for excluded pixels.
    """

    images: Float[Tensor, "b rows columns"]
    weights: Float[Tensor, "b rows columns"]

    def rows(self, rows: Tensor) -> "Data":
        """Return a subset of the batch."""
        return Data(self.images[rows], self.weights[rows])

    def repeated(self, n: int) -> "Data":
        """Return a batch of n references to the only image."""
        return Data(self.images.expand(n, -1, -1), self.weights.expand(n, -1, -1))


def data_of(observation: Observation, device: torch.device | str = "cpu") -> Data:
    """Return the image of an observation as a batch of one on a device."""
    arrays = (observation.image, observation.weights)
    return Data(*(torch.as_tensor(np.ascontiguousarray(v), dtype=torch.float32, device=device)[None] for v in arrays))


@dataclass
class State:
    """Current state of the fits of b images.

    Attributes:
        internal: Internal parameters (b, p).
        amplitudes: Linear amplitudes (b, l).
        model: Model images (b, rows, columns).
        chi2: Weighted sum of squared residuals (b,).
        deviance: chi2 plus the penalty of the priors (b,).
        curvature: Normal matrix of parameters and amplitudes (b, p + l, p + l), float64.
        rhs: Right-hand side of the normal equations for the parameters (b, p), float64.
        predicted_reduction: Predicted reduction of the deviance by an undamped step within the bounds (b,).
        steps: Number of steps taken (b,).
    """

    internal: Float[Tensor, "b p"]
    amplitudes: Float[Tensor, "b l"]
    model: Float[Tensor, "b rows columns"]
    chi2: Float[Tensor, " b"]
    deviance: Float[Tensor, " b"]
    curvature: Float[Tensor, "b q q"]
    rhs: Float[Tensor, "b p"]
    predicted_reduction: Float[Tensor, " b"]
    steps: Float[Tensor, " b"]

    def rows(self, rows: Tensor) -> "State":
        """Return a subset of the fits."""
        return State(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence["State"]) -> "State":
        """Return the fits of several states as one."""
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def put(self, rows: Tensor, other: "State") -> None:
        """Replace a subset of the fits."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)

    @property
    def converged(self) -> Bool[Tensor, " b"]:
        """Whether each fit has converged (`CONVERGED`)."""
        return self.predicted_reduction < CONVERGED


def detector_of(observation: Observation, scene: Scene) -> Detector:
    """Return the detector of an observation, with as many samples for each pixel as the scene needs."""
    oversampling = observation.psf.oversampling if observation.psf else 1
    return observation.detector(supersample=oversampling * (1 if scene.source_grid is None else _GRID_SAMPLES))


class Solver:
    """Fits of one scene to images from one detector.

    Args:
        scene: Model to fit.
        detector: Pixels and PSF.
        compiled: Whether to compile the scene (`darklens.scene.compiled`).
    """

    def __init__(self, scene: Scene, detector: Detector, *, compiled: bool = False) -> None:
        self.scene, self.detector, self.compiled = scene, detector, compiled
        self._functions = CompiledScene(scene) if compiled and scene.source_grid is None else scene
        prior = scene.amplitude_prior
        has_prior = [False] * len(scene.positive) if prior is None else (prior.diagonal() > 0).tolist()
        is_bounded = zip(scene.positive, has_prior, strict=True)
        self._ridges = tuple(_RIDGE if any(reasons) else _REGULARISATION for reasons in is_bounded)
        self._are_positive = tuple(scene.positive)

    def _ridge(self, device: torch.device) -> Float[Tensor, " l"]:
        return constant(self._ridges, torch.float32, device).double()

    def _penalty(self, amplitudes: Float[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Return minus twice the logarithm of the prior of the amplitudes."""
        prior, values = self.scene.amplitude_prior, amplitudes.double()
        if prior is None:
            return values.new_zeros(len(values))
        n = values.shape[1]
        return ((values @ prior[:n, :n].to(values.device)) * values).sum(1)

    def _positive(self, device: torch.device) -> Bool[Tensor, " l"]:
        return constant(self._are_positive, torch.bool, device)

    def state(self, internal: Float[Tensor, "b p"], data: Data) -> State:
        """Return model, deviance and normal equations at the given parameters, with the best-fitting amplitudes."""
        scene, detector = self.scene, self.detector
        complete = scene.complete(scene.external(internal))
        x, y = detector.positions(internal)
        basis, gram, projected = self._linear(complete, data)
        weights = data.weights.flatten(1)
        amplitudes = self._amplitudes(gram, projected).to(internal)
        slopes = detector.observe(self._functions.slope_planes(complete, amplitudes, x, y)).flatten(2)
        model = (amplitudes[:, None] @ basis)[:, 0]
        residual = data.images.flatten(1) - model
        chi2 = (weights * residual * residual).double().sum(1)
        weighted = slopes * weights[:, None]
        cross, inner = (weighted @ basis.mT).double(), (weighted @ slopes.mT).double()
        rhs = (weighted @ residual[:, :, None])[..., 0].double()
        curvature = torch.cat([torch.cat([inner, cross], 2), torch.cat([cross.mT, gram], 2)], 1)
        mean, prior = scene.prior(internal.double())
        away = internal.double() - mean
        p = slopes.shape[1]
        diagonal = torch.arange(p, device=internal.device)
        curvature[:, diagonal, diagonal] += prior
        diagonal = torch.arange(p, curvature.shape[1], device=internal.device)
        curvature[:, diagonal, diagonal] *= 1 + self._ridge(internal.device)
        zero = torch.nn.functional.pad(self._positive(internal.device) & (amplitudes <= 0), (p, 0))
        curvature.masked_fill_(zero[:, :, None] | zero[:, None], 0.0)  # amplitudes at zero stay there in a step
        nothing = torch.zeros(len(internal), dtype=torch.float64, device=internal.device)
        return State(
            internal=internal,
            amplitudes=amplitudes,
            model=model.reshape(data.images.shape),
            chi2=chi2,
            deviance=chi2 + (prior * away * away).sum(1) + self._penalty(amplitudes),
            curvature=curvature,
            rhs=rhs - prior * away,
            predicted_reduction=nothing + torch.inf,
            steps=nothing.clone(),
        )

    def deflection(self, parameters: Float[Tensor, "b p"], x: Tensor, y: Tensor) -> Float[Tensor, "b 2 rows columns"]:
        """Return the deflection along x and y at positions x and y, arcsec, which broadcast to (rows, columns)."""
        return self._functions.deflection_planes(self.scene.complete(parameters), x, y)

    @torch.no_grad()
    def deviance(self, internal: Float[Tensor, "b p"], data: Data, *, lens_light: bool = True) -> Float[Tensor, " b"]:
        """Return the deviance at the given parameters, with the best-fitting amplitudes.

        Args:
            internal: Internal parameters (b, p).
            data: One image for each row; without its lens light if `lens_light` is False.
            lens_light: Whether the model includes the lens light.
        """
        complete = self.scene.complete(self.scene.external(internal))
        basis, gram, projected = self._linear(complete, data, lens_light)
        amplitudes = self._amplitudes(gram, projected).to(internal)
        residual = data.images.flatten(1) - (amplitudes[:, None] @ basis)[:, 0]
        mean, prior = self.scene.prior(internal.double())
        penalty = (prior * (internal.double() - mean) ** 2).sum(1)
        penalty += self._penalty(amplitudes)
        return (data.weights.flatten(1) * residual * residual).double().sum(1) + penalty

    def _linear(
        self, complete: Float[Tensor, "b c"], data: Data, lens_light: bool = True
    ) -> tuple[Float[Tensor, "b l n"], Float[Tensor, "b l l"], Float[Tensor, "b l"]]:
        """Return the model images for unit amplitudes, and the normal equations of the amplitudes with their prior."""
        x, y = self.detector.positions(complete)
        basis = self.detector.observe(self._functions.planes(complete, x, y, lens_light=lens_light)).flatten(2)
        weighted = basis * data.weights.flatten(1)[:, None]
        gram = (weighted @ basis.mT).double()
        if (prior := self.scene.amplitude_prior) is not None:
            gram += prior[: gram.shape[1], : gram.shape[1]].to(gram.device)
        return basis, gram, (weighted @ data.images.flatten(1)[:, :, None])[..., 0].double()

    @torch.no_grad()
    def amplitude_equations(
        self, internal: Float[Tensor, "b p"], data: Data
    ) -> tuple[Float[Tensor, "b l l"], Float[Tensor, "b l"]]:
        """Return the normal equations of the amplitudes: matrix, which includes their prior, and right-hand side."""
        return self._linear(self.scene.complete(self.scene.external(internal)), data)[1:]

    def _amplitudes(self, gram: Float[Tensor, "b l l"], projected: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Solve for the amplitudes, of which the positive ones are at least zero."""
        n = gram.shape[1]
        positive, ridge = self._positive(gram.device)[:n], self._ridge(gram.device)[:n]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        scale = diagonal.clamp_min(1e-300).rsqrt()
        matrix = gram * scale[:, :, None] * scale[:, None] + torch.diag(ridge)
        target = projected * scale
        amplitudes: Tensor = non_negative(matrix, target, positive, diagonal > 0) * scale
        return amplitudes

    def step(self, state: State, damping: Float[Tensor, " b"]) -> tuple[Float[Tensor, "b p"], Float[Tensor, " b"]]:
        """Return the damped step of the internal parameters, and the predicted reduction of the deviance (`State`)."""
        curvature = self._reduced(state)
        damped = self._bounded_step(state, curvature, damping)
        gain = _predicted(state, curvature, damped)
        # The undamped step is needed only where the damped one is too small to tell. If a bound limits the undamped
        # step, its reduction can be smaller than that of the damped step, or zero.
        if bool((gain < CONVERGED).any()):
            undamped = self._bounded_step(state, curvature, torch.full_like(damping, _UNDAMPED))
            gain = torch.maximum(gain, _predicted(state, curvature, undamped))
        return damped, gain

    def _bounded_step(
        self, state: State, curvature: Float[Tensor, "b p p"], damping: Float[Tensor, " b"]
    ) -> Float[Tensor, "b p"]:
        """Return the damped step; parameters that would cross a bound are set to it, and the others are recomputed."""
        at = state.internal.double()
        low, high = (bound - at for bound in self.scene.bounds(at))
        longest = _LONGEST_STEP * constant(tuple(p.step for p in self.scene.free), at.dtype, at.device)
        low, high = torch.maximum(low, -longest), torch.minimum(high, longest)
        scale = curvature.diagonal(dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
        matrix = curvature * scale[:, :, None] * scale[:, None]
        eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        matrix = matrix + eye * damping[:, None, None]
        target = state.rhs * scale
        step, at_bound = torch.zeros_like(at), torch.zeros_like(at, dtype=torch.bool)
        for _ in range(_BOUND_ROUNDS):
            fixed = torch.where(at_bound, step / scale, 0.0)
            free = ~at_bound
            rest = target - (matrix @ fixed[:, :, None])[..., 0]
            system = torch.where(free[:, :, None] & free[:, None], matrix, eye)
            step = torch.where(at_bound, step, torch.linalg.solve(system, torch.where(free, rest, 0.0)) * scale)
            beyond = (step < low) | (step > high)
            step = step.clamp(low, high)
            if not bool((beyond & free).any()):
                break
            at_bound = at_bound | beyond
        return step

    def _reduced(self, state: State) -> Float[Tensor, "b p p"]:
        """Return the normal matrix of the parameters after elimination of the amplitudes."""
        p = state.rhs.shape[1]
        matrix = state.curvature
        cross, inner = matrix[:, :p, p:], matrix[:, p:, p:]
        scale = inner.diagonal(dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
        inner = inner * scale[:, :, None] * scale[:, None]
        inner = inner + torch.diag(torch.full((inner.shape[1],), _RIDGE, dtype=inner.dtype, device=inner.device))
        scaled = cross * scale[:, None]
        reduced: Tensor = matrix[:, :p, :p] - scaled @ torch.linalg.solve(inner, scaled.mT)
        return reduced

    @torch.no_grad()
    def minimise(self, internal: Float[Tensor, "b p"], data: Data, *, steps: int = 60) -> State:
        """Minimise the deviance until all fits have converged or the maximum number of steps is reached.

        Args:
            internal: Start (b, p), internal parameters.
            data: One image for each start.
            steps: Maximum number of steps.
        """
        if len(internal) > 1 and len(self.scene.positive) > _MAX_TOGETHER:  # to save memory
            each = (torch.tensor([k]) for k in range(len(internal)))
            return State.joined([self.minimise(internal[row], data.rows(row), steps=steps) for row in each])
        low, high = self.scene.bounds(internal)
        ended = self.state(internal.clamp(low, high), data)
        active = torch.arange(len(internal), device=internal.device)
        current, part = ended.rows(active), data
        damping = torch.full((len(internal),), DAMPING_START, dtype=torch.float64, device=internal.device)
        for _ in range(steps):
            change, gain = self.step(current, damping)
            current.predicted_reduction = gain
            finished = (gain < CONVERGED) | (damping >= _LARGEST_DAMPING)
            if bool(finished.any()):
                ended.put(active[finished], current.rows(finished))
                keep = ~finished
                active, change, damping = active[keep], change[keep], damping[keep]
                current, part = current.rows(keep), part.rows(keep)
                if not len(active):
                    return ended
            trial = self.state(current.internal + change.to(internal), part)
            trial.steps = current.steps + 1
            better = trial.deviance < current.deviance
            current.steps = current.steps + 1
            rows = torch.nonzero(better)[:, 0]
            current.put(rows, trial.rows(better))
            factor = torch.where(better, DAMPING_DECREASE, DAMPING_INCREASE)
            damping = (damping * factor).clamp(_SMALLEST_DAMPING, _LARGEST_DAMPING)
        _, current.predicted_reduction = self.step(current, damping)
        ended.put(active, current)
        return ended

    def effective_amplitudes(self, state: State) -> float:
        """Return the number of amplitudes of the first fit that the image determines, rather than their prior.

        It is the trace of F (F + P)^-1, with the normal matrix F and the inverse covariance P of the prior.
        """
        prior = self.scene.amplitude_prior
        if prior is None:
            return float(state.amplitudes.shape[1])
        p = state.rhs.shape[1]
        inner = state.curvature[0, p:, p:]
        is_free = inner.diagonal() > 0  # those at zero are not
        inner, prior = inner[is_free][:, is_free], prior.to(inner.device)[is_free][:, is_free]
        return float(len(inner) - torch.linalg.solve(inner, prior).diagonal().sum())

    def covariance(self, state: State) -> Float[Tensor, "b p p"]:
        """Return the covariance of the internal parameters, marginalised over the amplitudes."""
        covariance: Tensor = torch.linalg.pinv(self._reduced(state), hermitian=True)
        return covariance


def _predicted(state: State, curvature: Float[Tensor, "b p p"], step: Float[Tensor, "b p"]) -> Float[Tensor, " b"]:
    """Return the reduction of the deviance by a step in the quadratic approximation."""
    return (2 * state.rhs * step).sum(1) - ((curvature @ step[:, :, None])[..., 0] * step).sum(1)


def non_negative(
    matrix: Float[Tensor, "b l l"],
    target: Float[Tensor, "b l"],
    positive: Bool[Tensor, " l"],
    included: Bool[Tensor, "b l"],
) -> Float[Tensor, "b l"]:
    """Minimise x.A.x / 2 - t.x with x >= 0 where `positive`: the active-set method of Lawson & Hanson (1974, ch. 23).

    It starts from the set of all elements, so it takes one solution where none is negative.

    Args:
        matrix: Positive-definite A.
        target: t.
        positive: Elements that must be at least zero.
        included: Elements that are solved for; the others are zero.
    """
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    last = torch.arange(matrix.shape[1], device=target.device)
    tolerance = _SLOPE_TOLERANCE * target.abs().amax(1, keepdim=True)
    support, x = included, torch.zeros_like(target)
    for _ in range(_EXCHANGES_PER_AMPLITUDE * matrix.shape[1]):
        system = torch.where(support[:, :, None] & support[:, None], matrix, eye)
        solution = torch.where(support, torch.linalg.solve(system, torch.where(support, target, 0.0)), 0.0)
        negative = support & positive & (solution <= 0)
        feasible = ~negative.any(1, keepdim=True)
        ratio = torch.where(negative, x / (x - solution).clamp_min(1e-300), 1.0).amin(1, keepdim=True)
        x = torch.where(feasible, solution, x + ratio * (solution - x))
        slope = torch.where(included & positive & ~support, target - (matrix @ x[:, :, None])[..., 0], -torch.inf)
        steepest = slope.argmax(1, keepdim=True)
        added = feasible & (last == steepest) & (slope > tolerance)
        removed = negative & (x <= 1e-15 * x.amax(1, keepdim=True))
        if bool(feasible.all()) and not bool(added.any()):
            break
        support = (support & ~removed) | added
        x = torch.where(support, x, 0.0)
    return torch.where(positive, x.clamp_min(0.0), x)
