"""A damped Gauss-Newton iteration (Levenberg-Marquardt) on many images at once."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from darklens.fit.model import Model, Unknown
from darklens.fit.noise import Gain, Maps, Noise

SETTLED = 0.05  # of the deviance, the gain that a further step promises
_DAMPING, _DAMPING_DECREASE, _DAMPING_INCREASE, _STUCK = 1e-2, 0.2, 6.0, 1e6
_UNDAMPED = 1e-6
_EXPLAINED = 1.1  # deviance per block; where more is left, how slopes change with a step matters to where it ends


@dataclass
class Fitted:
    """Where the iteration of b images ended.

    Attributes:
        unknown: (b, q).
        deviance: (b,).
        promised: What an undamped step within the bounds would still gain (b,).
        model: (b, m, m), in image units.
        slopes: Its derivatives by the unknowns (b, q, m, m).
        curvature: Half the second derivatives of the deviance where the last step was sought (b, q, q).
    """

    unknown: Unknown
    deviance: Float[Tensor, " b"]
    predicted_reduction: Float[Tensor, " b"]
    model: Maps
    slopes: Float[Tensor, "b q m m"]
    curvature: Float[Tensor, "b q q"]

    def rows(self, rows: Tensor) -> "Fitted":
        """Return some of the images."""
        return Fitted(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def put(self, rows: Tensor, other: "Fitted") -> None:
        """Replace some of the images."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


@dataclass
class Active:
    """The images whose iteration goes on, with their numbers among all."""

    numbers: Int[Tensor, " b"]
    images: Maps
    noise: Noise
    gain: Gain | None
    damping: Float[Tensor, " b"]
    at: Fitted

    def without(self, finished: Bool[Tensor, " b"], ended: Fitted) -> "Active":
        """Return what goes on, and put the others where all images end."""
        ended.put(self.numbers[finished], self.at.rows(finished))
        unfinished = ~finished
        return Active(
            self.numbers[unfinished],
            self.images[unfinished],
            self.noise.rows(unfinished),
            None if self.gain is None else self.gain[unfinished],
            self.damping[unfinished],
            self.at.rows(unfinished),
        )


def minimise(
    model: Model,
    images: Maps,
    noise: Noise,
    unknown: Unknown,
    *,
    steps: int,
    gain: Gain | None = None,
    settle: bool = False,
    keep_slopes: float = 0.0,
) -> Fitted:
    """Lower the deviance by a damped Gauss-Newton iteration (Levenberg-Marquardt); settled images drop out.

    Args:
        model: What is fitted.
        images: On the model's detector.
        noise: Theirs.
        unknown: Where to start.
        steps: At most so many.
        gain: Scale and offset by which image units are counts. None takes the model's own at each step, which finds
            them; fits that are compared need one gain, or their deviances are of different data.
        settle: Leave out the last step, which promises less than SETTLED: one model fewer, for an end on many pixels.
        keep_slopes: Where a step promises less and what is left is near the noise, derivatives stay those before and
            light alone is computed: for smooth lenses, which are as good as linear within some standard deviations.
    """
    first_column = unknown[:, 0]
    nothing, endless = torch.full_like(first_column, torch.nan), torch.full_like(first_column, torch.inf)
    flat = unknown.new_zeros(*unknown.shape, unknown.shape[1], dtype=torch.float64)
    ended = Fitted(unknown.clone(), nothing, endless, *model.expected(unknown), flat)
    numbers = torch.arange(len(images), device=images.device)
    active = Active(numbers, images, noise, gain, torch.full_like(first_column, _DAMPING), ended)
    for step_number in range(steps):
        at, fixed_gain = active.at, model.gain(active.at.unknown) if active.gain is None else active.gain
        if step_number == 0 or (active.gain is None and not settle):
            at.deviance = active.noise.deviance(active.images, at.model, fixed_gain)
        curvature, rhs = active.noise.normal_equations(at.slopes, active.images, at.model, fixed_gain)
        at.curvature = curvature
        dampings = torch.stack([active.damping, torch.full_like(active.damping, _UNDAMPED)])
        step, undamped = damped_step(curvature, rhs, dampings).to(unknown)
        # Of the step that the bounds allow: light that is hardly seen may promise much beyond them.
        reach = (model.apply_step(at.unknown, undamped) - at.unknown).double()
        at.predicted_reduction = (reach * (2 * rhs - (curvature @ reach[:, :, None])[..., 0])).sum(1).to(unknown)
        if settle:
            finished = at.predicted_reduction < SETTLED
            if bool(finished.all()):
                break
            if bool(finished.any()):
                active, fixed_gain, step = active.without(finished, ended), fixed_gain[~finished], step[~finished]
                at, curvature = active.at, active.at.curvature
            if step_number and active.gain is None:
                at.deviance = active.noise.deviance(active.images, at.model, fixed_gain)
        trial = model.apply_step(at.unknown, step)
        short = (at.predicted_reduction < keep_slopes) & (at.deviance < _EXPLAINED * at.model[0].numel())
        light, slopes = _expected(model, trial, short, at.slopes)
        after = active.noise.deviance(active.images, light, fixed_gain)
        better = after < at.deviance  # false for NaN
        active.at = _better(at, Fitted(trial, after, at.predicted_reduction, light, slopes, curvature), better)
        active.damping = active.damping * torch.where(better, _DAMPING_DECREASE, _DAMPING_INCREASE)
        finished = (better & (at.predicted_reduction < SETTLED)) | (active.damping >= _STUCK)
        if bool(finished.all()):
            break
        if bool(finished.any()):
            active = active.without(finished, ended)
    if len(active.numbers) == len(images):
        return active.at
    ended.put(active.numbers, active.at)
    return ended


def _expected(
    model: Model, unknown: Unknown, short: Bool[Tensor, " b"], slopes: Float[Tensor, "b q m m"]
) -> tuple[Maps, Float[Tensor, "b q m m"]]:
    """Return what the unknowns mean; where they are a short step away, slopes stay as they are."""
    if bool(short.all()):
        return model.light(unknown), slopes
    if not bool(short.any()):
        return model.expected(unknown)
    light, fresh = torch.empty_like(slopes[:, 0]), slopes.clone()
    light[short] = model.light(unknown[short])
    light[~short], fresh[~short] = model.expected(unknown[~short])
    return light, fresh


def _better(before: Fitted, after: Fitted, better: Bool[Tensor, " b"]) -> Fitted:
    """Return in each image the better of the two; `after` is used up."""
    worse = torch.nonzero(~better)[:, 0]
    if len(worse):
        for f in fields(after):
            old, new = getattr(before, f.name), getattr(after, f.name)
            if new is not old:
                new[worse] = old[worse]
    return after


def damped_step(
    curvature: Float[Tensor, "b q q"], rhs: Float[Tensor, "b q"], damping: Float[Tensor, "*d b"]
) -> Float[Tensor, "*d b q"]:
    """Return the Gauss-Newton step, damped by so much of each parameter's own curvature; for several dampings, each."""
    # Scaled to a unit diagonal: parameters of very different size meet in one matrix.
    unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    scaled, scaled_pull = curvature * unit[:, :, None] * unit[:, None], rhs * unit
    ones = torch.eye(rhs.shape[1], dtype=rhs.dtype, device=rhs.device)
    damped = scaled + (damping.double()[..., None, None] + 1e-9) * ones
    step: Tensor = torch.linalg.solve(damped, scaled_pull.expand(damped.shape[:-1]))
    return step * unit
