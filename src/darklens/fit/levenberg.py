"""Levenberg-Marquardt minimisation of the deviance of many images at once."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from darklens.fit.model import FitParameters, Model
from darklens.fit.noise import Gain, Maps, Noise

TOLERANCE = 0.05  # predicted reduction of the deviance below which a fit has converged
_DAMPING, _DAMPING_DECREASE, _DAMPING_INCREASE, _LARGEST_DAMPING = 1e-2, 0.2, 6.0, 1e6
_SMALLEST_DAMPING = 1e-6
_BOUND_ROUNDS = 3  # in which further parameters may meet their bounds
_GOOD_CHI2_PER_PIXEL = 1.1  # above, the minimum depends on the change of the derivatives with each step


@dataclass
class FitState:
    """The state of the minimisation of b images.

    Attributes:
        parameters: Free parameters (b, q).
        deviance: Deviance (b,).
        predicted_reduction: Reduction of the deviance predicted for an undamped step within the bounds (b,).
        model: Model images (b, m, m), image units.
        slopes: Derivatives of the model with respect to the parameters (b, q, m, m).
        curvature: Half the second derivatives of the deviance, where the last step was computed (b, q, q).
    """

    parameters: FitParameters
    deviance: Float[Tensor, " b"]
    predicted_reduction: Float[Tensor, " b"]
    model: Maps
    slopes: Float[Tensor, "b q m m"]
    curvature: Float[Tensor, "b q q"]

    def rows(self, rows: Tensor) -> "FitState":
        """Return the state of a selection of the images."""
        return FitState(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def assign(self, rows: Tensor, other: "FitState") -> None:
        """Replace the state of a selection of the images."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


@dataclass(frozen=True)
class SharedSlopes:
    """Derivatives of the models of b images, as rows of those of more images, so that a selection needs no copy.

    Attributes:
        maps: Derivatives of n models (n, q, m, m).
        selected: Their row for each image (b,); None if b = n.
    """

    maps: Float[Tensor, "n q m m"]
    selected: Int[Tensor, " b"] | None = None

    def __getitem__(self, rows: Int[Tensor, " k"]) -> "SharedSlopes":
        return SharedSlopes(self.maps, rows if self.selected is None else self.selected[rows])

    def copied(self) -> Float[Tensor, "b q m m"]:
        """Return the derivatives of these images alone."""
        return self.maps if self.selected is None else self.maps[self.selected]


@dataclass
class Iterate:
    """A step of the minimisation of b images; attributes as of `FitState`."""

    parameters: FitParameters
    deviance: Float[Tensor, " b"]
    predicted_reduction: Float[Tensor, " b"]
    model: Maps
    slopes: SharedSlopes
    curvature: Float[Tensor, "b q q"]

    def rows(self, rows: Int[Tensor, " k"]) -> "Iterate":
        """Return the step of a selection of the images."""
        return Iterate(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def replace(self, rows: Int[Tensor, " k"], other: "Iterate") -> None:
        """Replace a selection of the images by those of another step."""
        for f in fields(self):
            old, new = getattr(other, f.name), getattr(self, f.name)
            if new is old:
                continue
            if isinstance(new, SharedSlopes):
                new.maps[rows] = old[rows].copied()
            else:
                new[rows] = old[rows]

    def fit(self) -> FitState:
        """Return the step as a result."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return FitState(**values | {"slopes": self.slopes.copied()})


@dataclass
class Active:
    """The images that have not converged, with their indices in the batch."""

    indices: Int[Tensor, " b"]
    images: Maps
    noise: Noise
    gain: Gain | None
    damping: Float[Tensor, " b"]
    state: Iterate

    def drop(self, is_finished: Bool[Tensor, " b"], final: FitState) -> "Active":
        """Copy finished images to `final`, and return the others."""
        finished, unfinished = (torch.nonzero(rows)[:, 0] for rows in (is_finished, ~is_finished))
        final.assign(self.indices[finished], self.state.rows(finished).fit())
        return Active(
            self.indices[unfinished],
            self.images[unfinished],
            self.noise.rows(unfinished),
            None if self.gain is None else self.gain[unfinished],
            self.damping[unfinished],
            self.state.rows(unfinished),
        )


def minimise(
    model: Model,
    images: Maps,
    noise: Noise,
    parameters: FitParameters,
    *,
    steps: int,
    gain: Gain | None = None,
    skip_last_step: bool = False,
    reuse_slopes_below: float = 0.0,
) -> FitState:
    """Minimise the deviance by damped Gauss-Newton steps (Levenberg-Marquardt); converged images drop out.

    Args:
        model: The forward model.
        images: Images on the detector of the model.
        noise: Noise of the images.
        parameters: Starting values.
        steps: Largest number of steps.
        gain: ln scale and offset that convert image units to counts. None uses those of the model at each step. Fits
            that are compared need the same gain, because their deviances must refer to the same counts.
        skip_last_step: Skip the last step, whose predicted reduction is below `TOLERANCE`. It saves one evaluation of
            the model.
        reuse_slopes_below: Predicted reduction below which derivatives are reused after a step, if the residuals are
            near the noise. Smooth lenses are almost linear within a few standard deviations.
    """
    first_column = parameters[:, 0]
    nan, infinity = torch.full_like(first_column, torch.nan), torch.full_like(first_column, torch.inf)
    no_curvature = parameters.new_zeros(*parameters.shape, parameters.shape[1], dtype=torch.float64)
    light, maps = model.expected(parameters)
    first = Iterate(parameters.clone(), nan, infinity, light, SharedSlopes(maps), no_curvature)
    final, indices = first.fit(), torch.arange(len(images), device=images.device)
    active = Active(indices, images, noise, gain, torch.full_like(first_column, _DAMPING), first)
    for step_number in range(steps):
        state, fixed_gain = active.state, model.gain(active.state.parameters) if active.gain is None else active.gain
        if step_number == 0 or (active.gain is None and not skip_last_step):
            state.deviance = active.noise.deviance(active.images, state.model, fixed_gain)
        curvature, rhs = active.noise.normal_equations(
            state.slopes.maps, active.images, state.model, fixed_gain, rows=state.slopes.selected
        )
        state.curvature = curvature
        dampings = torch.stack([active.damping, torch.full_like(active.damping, _SMALLEST_DAMPING)])
        step, undamped = _step_within_bounds(model, state.parameters, curvature, rhs, dampings).to(parameters)
        # Of the step within the bounds: faint light would predict a large reduction beyond them.
        bounded_step = (model.apply_step(state.parameters, undamped) - state.parameters).double()
        state.predicted_reduction = (
            (bounded_step * (2 * rhs - (curvature @ bounded_step[:, :, None])[..., 0])).sum(1).to(parameters)
        )
        if model.goes_on_after_cut_steps:
            state.predicted_reduction = state.predicted_reduction.abs()
        if skip_last_step:
            finished = state.predicted_reduction < TOLERANCE
            if bool(finished.all()):
                break
            if bool(finished.any()):
                active, fixed_gain, step = active.drop(finished, final), fixed_gain[~finished], step[~finished]
                state, curvature = active.state, active.state.curvature
            if step_number and active.gain is None:
                state.deviance = active.noise.deviance(active.images, state.model, fixed_gain)
        trial = model.apply_step(state.parameters, step)
        reuse = (state.predicted_reduction < reuse_slopes_below) & (
            state.deviance < _GOOD_CHI2_PER_PIXEL * state.model[0].numel()
        )
        light, slopes = _model_at(model, trial, reuse, state.slopes)
        trial_deviance = active.noise.deviance(active.images, light, fixed_gain)
        better = trial_deviance < state.deviance  # false for NaN
        active.state = Iterate(trial, trial_deviance, state.predicted_reduction, light, slopes, curvature)
        if not bool(better.all()):
            active.state.replace(torch.nonzero(~better)[:, 0], state)
        active.damping = active.damping * torch.where(better, _DAMPING_DECREASE, _DAMPING_INCREASE)
        finished = (better & (state.predicted_reduction < TOLERANCE)) | (active.damping >= _LARGEST_DAMPING)
        if bool(finished.all()):
            break
        if bool(finished.any()):
            active = active.drop(finished, final)
    if len(active.indices) == len(images):
        return active.state.fit()
    final.assign(active.indices, active.state.fit())
    return final


def _model_at(
    model: Model, parameters: FitParameters, reuse: Bool[Tensor, " b"], slopes: SharedSlopes
) -> tuple[Maps, SharedSlopes]:
    """Return model images and derivatives; images in `reuse` keep their derivatives."""
    if bool(reuse.all()):
        return model.light(parameters), slopes
    if not bool(reuse.any()):
        light, maps = model.expected(parameters)
        return light, SharedSlopes(maps)
    maps = slopes.copied().clone() if slopes.selected is None else slopes.copied()
    light = torch.empty_like(maps[:, 0])
    light[reuse] = model.light(parameters[reuse])
    light[~reuse], maps[~reuse] = model.expected(parameters[~reuse])
    return light, SharedSlopes(maps)


def _step_within_bounds(
    model: Model,
    parameters: FitParameters,
    curvature: Float[Tensor, "b q q"],
    rhs: Float[Tensor, "b q"],
    dampings: Float[Tensor, "d b"],
) -> Float[Tensor, "d b q"]:
    """Return the step for each damping, in which parameters at a bound that would cross it are kept."""
    steps = damped_step(curvature, rhs, dampings)
    for _ in range(_BOUND_ROUNDS):
        blocked = model.blocked(parameters, steps[0])
        if blocked is None or not bool(blocked.any()):
            break
        kept = blocked[:, :, None] | blocked[:, None]
        curvature = torch.where(kept, torch.diag_embed(torch.ones_like(rhs)), curvature)
        rhs = torch.where(blocked, 0.0, rhs)
        steps = damped_step(curvature, rhs, dampings)
    return steps


def damped_step(
    curvature: Float[Tensor, "b q q"], rhs: Float[Tensor, "b q"], damping: Float[Tensor, "*d b"]
) -> Float[Tensor, "*d b q"]:
    """Return the Levenberg-Marquardt step for each damping, relative to the diagonal of the curvature."""
    # Scaled to a unit diagonal, because the parameters differ by orders of magnitude.
    unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    scaled, scaled_rhs = curvature * unit[:, :, None] * unit[:, None], rhs * unit
    ones = torch.eye(rhs.shape[1], dtype=rhs.dtype, device=rhs.device)
    damped = scaled + (damping.double()[..., None, None] + 1e-9) * ones
    step: Tensor = torch.linalg.solve(damped, scaled_rhs.expand(damped.shape[:-1]))
    return step * unit
