"""Levenberg-Marquardt minimisation of the deviance of many images at once."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from darklens.fit.model import FitParameters, KeptSlopes, Linearised, Model
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
        slopes: Derivatives of the model with respect to the k = q parameters (b, k, m, m); k = 0 if they are not kept.
        curvature: Half the second derivatives of the deviance (b, q, q).
    """

    parameters: FitParameters
    deviance: Float[Tensor, " b"]
    predicted_reduction: Float[Tensor, " b"]
    model: Maps
    slopes: Float[Tensor, "b k m m"]
    curvature: Float[Tensor, "b q q"]

    def rows(self, rows: Tensor) -> "FitState":
        """Return the state of a selection of the images."""
        return FitState(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def assign(self, rows: Tensor, other: "FitState") -> None:
        """Replace the state of a selection of the images."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


@dataclass
class Iterate:
    """A step of the minimisation of b images, with the attributes of `FitState` and two more.

    Attributes:
        rhs: Minus half the first derivatives of the deviance (b, q).
        kept: The row of the derivatives among those that are kept (b,).
    """

    parameters: FitParameters
    deviance: Float[Tensor, " b"]
    predicted_reduction: Float[Tensor, " b"]
    model: Maps
    curvature: Float[Tensor, "b q q"]
    rhs: Float[Tensor, "b q"]
    kept: Int[Tensor, " b"]

    def rows(self, rows: Int[Tensor, " k"]) -> "Iterate":
        """Return the step of a selection of the images."""
        return Iterate(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def assign(self, rows: Int[Tensor, " k"], other: "Iterate") -> None:
        """Replace a selection of the images."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


@dataclass
class Active:
    """The images that have not converged, with their indices in the batch."""

    indices: Int[Tensor, " b"]
    images: Maps
    noise: Noise
    gain: Gain | None
    damping: Float[Tensor, " b"]
    state: Iterate

    def drop(self, is_finished: Bool[Tensor, " b"], final: Iterate) -> "Active":
        """Copy finished images to `final`, and return the others."""
        finished, unfinished = (torch.nonzero(rows)[:, 0] for rows in (is_finished, ~is_finished))
        final.assign(self.indices[finished], self.state.rows(finished))
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
    with_slopes: bool = True,
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
            near the noise. Smooth lenses are almost linear within a few standard deviations. Needs `with_slopes`.
        with_slopes: Whether to keep derivatives; otherwise the result has none.

    Raises:
        ValueError: If derivatives are to be reused, but not kept.
    """
    if reuse_slopes_below > 0 and not with_slopes:
        raise ValueError("derivatives that are not kept cannot be reused; set with_slopes=True")
    first_column, indices = parameters[:, 0], torch.arange(len(images), device=images.device)
    nan, infinity = torch.full_like(first_column, torch.nan), torch.full_like(first_column, torch.inf)
    # Two rows for each image: a step writes to one, and if it is refused, the other is still there.
    maps = images.new_empty(2 * len(images), parameters.shape[1], *images.shape[1:]) if with_slopes else None
    kept = 2 * indices
    linearised = model.linearised(
        parameters, images, noise, model.gain(parameters) if gain is None else gain, KeptSlopes(maps, kept)
    )
    final = Iterate(parameters.clone(), nan, infinity, *linearised, kept)
    active = Active(indices, images, noise, gain, torch.full_like(first_column, _DAMPING), replace(final))
    for step_number in range(steps):
        state, fixed_gain = active.state, model.gain(active.state.parameters) if active.gain is None else active.gain
        if step_number == 0 or (active.gain is None and not skip_last_step):
            state.deviance = active.noise.deviance(active.images, state.model, fixed_gain)
        curvature, rhs = state.curvature, state.rhs
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
                state = active.state
            if step_number and active.gain is None:
                state.deviance = active.noise.deviance(active.images, state.model, fixed_gain)
        trial = model.apply_step(state.parameters, step)
        reuse = None
        if reuse_slopes_below > 0:
            near = state.deviance < _GOOD_CHI2_PER_PIXEL * state.model[0].numel()
            reuse = near & (state.predicted_reduction < reuse_slopes_below)
        linearised, kept = _linearised(model, trial, active, maps, reuse)
        trial_deviance = active.noise.deviance(active.images, linearised.light, fixed_gain)
        better = trial_deviance < state.deviance  # false for NaN
        active.state = Iterate(trial, trial_deviance, state.predicted_reduction, *linearised, kept)
        if not bool(better.all()):
            refused = torch.nonzero(~better)[:, 0]
            active.state.assign(refused, state.rows(refused))
        active.damping = active.damping * torch.where(better, _DAMPING_DECREASE, _DAMPING_INCREASE)
        finished = (better & (state.predicted_reduction < TOLERANCE)) | (active.damping >= _LARGEST_DAMPING)
        if bool(finished.all()):
            break
        if bool(finished.any()):
            active = active.drop(finished, final)
    if len(active.indices) == len(images):
        final = active.state
    else:
        final.assign(active.indices, active.state)
    return FitState(
        final.parameters,
        final.deviance,
        final.predicted_reduction,
        final.model,
        images.new_empty(len(images), 0, *images.shape[1:]) if maps is None else maps.index_select(0, final.kept),
        final.curvature,
    )


def _linearised(
    model: Model, parameters: FitParameters, active: Active, maps: Tensor | None, reuse: Bool[Tensor, " b"] | None
) -> tuple[Linearised, Int[Tensor, " b"]]:
    """Return models and normal equations, and the rows of their derivatives; images in `reuse` keep those they have."""
    images, noise = active.images, active.noise
    gain = model.gain(parameters) if active.gain is None else active.gain
    if reuse is None or not bool(reuse.any()):
        kept = KeptSlopes(maps, active.state.kept ^ 1)
        return model.linearised(parameters, images, noise, gain, kept), kept.rows
    assert maps is not None
    rows = active.state.kept
    old, new = (torch.nonzero(part)[:, 0] for part in (reuse, ~reuse))
    light = model.light(parameters[old])
    of_old = noise.rows(old).normal_equations(maps, images[old], light, gain[old], rows=rows[old])
    if not len(new):
        return Linearised(light, *of_old), rows
    rows = torch.where(reuse, rows, rows ^ 1)
    of_new = model.linearised(parameters[new], images[new], noise.rows(new), gain[new], KeptSlopes(maps, rows[new]))
    order = torch.cat([old, new]).argsort()
    parts = zip((light, *of_old), of_new, strict=True)
    return Linearised(*(torch.cat(pair)[order] for pair in parts)), rows


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
