"""A damped Gauss-Newton iteration (Levenberg-Marquardt) on many images at once."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.fit.model import Model, Unknown
from darklens.fit.noise import Gain, Maps, Noise

SETTLED = 0.05  # of the deviance, the gain that a further step promises
_DAMPING, _CALMER, _HEAVIER, _STUCK = 1e-2, 0.2, 6.0, 1e6
_UNDAMPED = 1e-6


@dataclass
class Fitted:
    """Where the iteration of b images ended.

    Attributes:
        unknown: (b, q).
        deviance: (b,).
        promised: What an undamped step within the bounds would still gain (b,).
        model: (b, m, m), in image units.
        slopes: Its derivatives by the unknowns (b, q, m, m).
    """

    unknown: Unknown
    deviance: Float[Tensor, " b"]
    promised: Float[Tensor, " b"]
    model: Maps
    slopes: Float[Tensor, "b q m m"]

    def rows(self, rows: Tensor) -> "Fitted":
        """Return some of the images."""
        return Fitted(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def put(self, rows: Tensor, other: "Fitted") -> None:
        """Replace some of the images."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


def minimise(
    model: Model,
    images: Maps,
    noise: Noise,
    unknown: Unknown,
    *,
    steps: int,
    gain: Gain | None = None,
    settle: bool = False,
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
    """
    found_model, found_slopes = model.expected(unknown)
    best = Fitted(
        unknown.clone(),
        noise.deviance(images, found_model, model.gain(unknown) if gain is None else gain),
        torch.full_like(unknown[:, 0], torch.inf),
        found_model,
        found_slopes,
    )
    damping = torch.full_like(unknown[:, 0], _DAMPING)
    active = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        at, own, own_noise = best.unknown[active], images[active], noise.rows(active)
        held = model.gain(at) if gain is None else gain[active]
        now, slopes = best.model[active], best.slopes[active]
        before = own_noise.deviance(own, now, held)
        curvature, pull = normal_equations(slopes, own_noise.weight(now, held), own - now)
        step = damped_step(curvature, pull, damping[active])
        undamped = damped_step(curvature, pull, torch.full_like(damping[active], _UNDAMPED))
        # Of the step that the bounds allow: light that is hardly seen may promise much beyond them.
        reach = (model.moved(at, undamped.to(at)) - at).double()
        promised = (reach * (2 * pull - (curvature @ reach[:, :, None])[..., 0])).sum(1).to(at)
        best.promised[active] = promised
        if settle:
            going = ~(promised < SETTLED)
            active, at, own, held, before, step, promised = (
                v[going] for v in (active, at, own, held, before, step, promised)
            )
            own_noise = own_noise.rows(going)
            if not len(active):
                break
        trial = model.moved(at, step.to(at))
        trial_model, trial_slopes = model.expected(trial)
        after = own_noise.deviance(own, trial_model, held)
        better = after < before  # false for NaN
        rows = active[better]
        best.unknown[rows], best.model[rows], best.slopes[rows] = (
            trial[better],
            trial_model[better],
            trial_slopes[better],
        )
        best.deviance[active] = torch.where(better, after, before)
        damping[active] *= torch.where(better, _CALMER, _HEAVIER)
        active = active[~(better & (promised < SETTLED)) & (damping[active] < _STUCK)]
        if not len(active):
            break
    return best


def normal_equations(
    slopes: Float[Tensor, "b q m m"], weight: Maps, difference: Maps
) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]]:
    """Return curvature and pull: half the second derivatives of chi2 and minus half its first."""
    flat = slopes.flatten(2)
    weighted = flat * weight.flatten(1)[:, None]
    return (weighted @ flat.mT).double(), (weighted @ difference.flatten(1)[:, :, None])[..., 0].double()


def damped_step(
    curvature: Float[Tensor, "b q q"], pull: Float[Tensor, "b q"], damping: Float[Tensor, " b"]
) -> Float[Tensor, "b q"]:
    """Return the Gauss-Newton step, damped by so much of each parameter's own curvature."""
    # Scaled to a unit diagonal: parameters of very different size meet in one matrix.
    unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    scaled, scaled_pull = curvature * unit[:, :, None] * unit[:, None], pull * unit
    ones = torch.eye(pull.shape[1], dtype=pull.dtype, device=pull.device)
    step: Tensor = torch.linalg.solve(scaled + (damping.double()[:, None, None] + 1e-9) * ones, scaled_pull)
    return step * unit
