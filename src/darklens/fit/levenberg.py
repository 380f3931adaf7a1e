"""A damped Gauss-Newton iteration (Levenberg-Marquardt) on many images at once."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from darklens.fit.model import Model, Unknown
from darklens.fit.noise import Gain, Maps, Noise

SETTLED = 0.05  # of the deviance, the gain that a further step promises
_DAMPING, _CALMER, _HEAVIER, _STUCK = 1e-2, 0.2, 6.0, 1e6
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
    promised: Float[Tensor, " b"]
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
class _Going:
    """The images whose iteration goes on, with their numbers among all."""

    numbers: Int[Tensor, " b"]
    images: Maps
    noise: Noise
    gain: Gain | None
    damping: Float[Tensor, " b"]
    at: Fitted

    def without(self, over: Bool[Tensor, " b"], ended: Fitted) -> "_Going":
        """Return what goes on, and put the others where all images end."""
        ended.put(self.numbers[over], self.at.rows(over))
        left = ~over
        return _Going(
            self.numbers[left],
            self.images[left],
            self.noise.rows(left),
            None if self.gain is None else self.gain[left],
            self.damping[left],
            self.at.rows(left),
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
    some = unknown[:, 0]
    nothing, endless = torch.full_like(some, torch.nan), torch.full_like(some, torch.inf)
    flat = unknown.new_zeros(*unknown.shape, unknown.shape[1], dtype=torch.float64)
    ended = Fitted(unknown.clone(), nothing, endless, *model.expected(unknown), flat)
    numbers = torch.arange(len(images), device=images.device)
    going = _Going(numbers, images, noise, gain, torch.full_like(some, _DAMPING), ended)
    for step_number in range(steps):
        at, held = going.at, model.gain(going.at.unknown) if going.gain is None else going.gain
        if step_number == 0 or (going.gain is None and not settle):
            at.deviance = going.noise.deviance(going.images, at.model, held)
        curvature, pull = going.noise.normal_equations(at.slopes, going.images, at.model, held)
        at.curvature = curvature
        dampings = torch.stack([going.damping, torch.full_like(going.damping, _UNDAMPED)])
        step, undamped = damped_step(curvature, pull, dampings).to(unknown)
        # Of the step that the bounds allow: light that is hardly seen may promise much beyond them.
        reach = (model.moved(at.unknown, undamped) - at.unknown).double()
        at.promised = (reach * (2 * pull - (curvature @ reach[:, :, None])[..., 0])).sum(1).to(unknown)
        if settle:
            over = at.promised < SETTLED
            if bool(over.all()):
                break
            if bool(over.any()):
                going, held, step = going.without(over, ended), held[~over], step[~over]
                at, curvature = going.at, going.at.curvature
            if step_number and going.gain is None:
                at.deviance = going.noise.deviance(going.images, at.model, held)
        trial = model.moved(at.unknown, step)
        short = (at.promised < keep_slopes) & (at.deviance < _EXPLAINED * at.model[0].numel())
        light, slopes = _expected(model, trial, short, at.slopes)
        after = going.noise.deviance(going.images, light, held)
        better = after < at.deviance  # false for NaN
        going.at = _better(at, Fitted(trial, after, at.promised, light, slopes, curvature), better)
        going.damping = going.damping * torch.where(better, _CALMER, _HEAVIER)
        over = (better & (at.promised < SETTLED)) | (going.damping >= _STUCK)
        if bool(over.all()):
            break
        if bool(over.any()):
            going = going.without(over, ended)
    if len(going.numbers) == len(images):
        return going.at
    ended.put(going.numbers, going.at)
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
    curvature: Float[Tensor, "b q q"], pull: Float[Tensor, "b q"], damping: Float[Tensor, "*d b"]
) -> Float[Tensor, "*d b q"]:
    """Return the Gauss-Newton step, damped by so much of each parameter's own curvature; for several dampings, each."""
    # Scaled to a unit diagonal: parameters of very different size meet in one matrix.
    unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    scaled, scaled_pull = curvature * unit[:, :, None] * unit[:, None], pull * unit
    ones = torch.eye(pull.shape[1], dtype=pull.dtype, device=pull.device)
    damped = scaled + (damping.double()[..., None, None] + 1e-9) * ones
    step: Tensor = torch.linalg.solve(damped, scaled_pull.expand(damped.shape[:-1]))
    return step * unit
