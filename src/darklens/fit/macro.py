"""Fit the smooth lens, whatever the image's scale: `fit_macro(images, population)`.

Each image is compared with a bank of smooth lenses drawn from the population; the nearest starts a damped Gauss-Newton
iteration (Levenberg-Marquardt), on large pixels first, then on the image's own.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.data.noise import noise_variance
from darklens.fit.smooth import SmoothLens
from darklens.simulate import populations
from darklens.simulate.draw import draw
from darklens.simulate.populations import Field2D, PoissonNoise, Population

Images = Float[Tensor, "b n n"]

AT_ONCE = 16  # images; more do not fit a processor's cache
_BANK = 8192  # smooth lenses
_BANK_ARCSEC = 0.25  # pixels of the bank
_COARSE_ARCSEC = 0.15  # pixels of the first iterations
_COARSE_STEPS, _FINE_STEPS = 12, 12
_SETTLED = 0.05  # of chi2, the gain that a further step promises
_DAMPING, _CALMER, _HEAVIER = 1e-2, 0.2, 6.0
_POOR = 5.0  # chi2 per pixel after the coarse steps: the start was in another valley
_STARTS = 4


@dataclass(frozen=True)
class MacroFit:
    """Fits of b images; all arrays are for the image as it was given, whatever its scale.

    Attributes:
        names: The p parameters (arcsec for positions and radii; `ln_` marks natural logarithms).
        parameters: Their values (b, p).
        covariance: Their covariance (b, p, p), scale and offset marginalised.
        scale: Image units per unit of the population's brightness (b,).
        offset: Image units where there is no light (b,).
        model: The smooth lens as it would look without noise (b, n, n).
        residual: (image - model) / noise (b, n, n), for a smooth lens white with variance 1.
        chi2: Sum of squared residuals per degree of freedom (b,).
        converged: Whether another step would gain less than 0.05 of chi2 (b,).
    """

    names: tuple[str, ...]
    parameters: Float[Tensor, "b p"]
    covariance: Float[Tensor, "b p p"]
    scale: Float[Tensor, " b"]
    offset: Float[Tensor, " b"]
    model: Images
    residual: Images
    chi2: Float[Tensor, " b"]
    converged: Bool[Tensor, " b"]


@dataclass
class _State:
    """The iteration of some images: parameters with ln scale and offset at the end."""

    unknown: Float[Tensor, "b q"]
    damping: Float[Tensor, " b"]
    gain: Float[Tensor, " b"]


@torch.no_grad()
def fit_macro(images: Images, population: Population | str) -> MacroFit:
    """Fit the smooth lens of a population to images in any linear scale: counts, rates, or scaled to 0..1.

    Args:
        images: Images on the population's detector; nothing is assumed of their zero and unit.
        population: Gives the family of lenses, the PSF and the noise; a name is looked up.

    Raises:
        ConfigError: If the population's light is not Sersic profiles.
        ValueError: If the images are not of the population's size, or not finite.
    """
    chosen = populations.get(population) if isinstance(population, str) else population
    n = chosen.field.n_pixels
    if images.shape[-2:] != (n, n):
        raise ValueError(f"{chosen.name} has images of {n} x {n} pixels, got {images.shape[-2]} x {images.shape[-1]}")
    if not torch.isfinite(images).all():
        raise ValueError("images must be finite; mask or replace NaN and infinite pixels first")
    lens = smooth_lens(chosen)
    parts = [_fit_some(some, lens) for some in torch.split(images.float(), AT_ONCE)]
    arrays = {
        f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(MacroFit) if f.name != "names"
    }
    return MacroFit(names=tuple(lens.names), **arrays)


def smooth_lens(population: Population) -> SmoothLens:
    """Return the family of a population, made once."""
    return _lens_of(population.model_dump_json(by_alias=True))


@lru_cache(maxsize=8)
def _lens_of(population: str) -> SmoothLens:
    return SmoothLens(Population.model_validate_json(population))


def _fit_some(images: Images, lens: SmoothLens) -> MacroFit:
    # In units of the image's own spread, so that one set of thresholds suits counts and scaled images.
    low = images.amin((1, 2), keepdim=True)
    spread = (images.amax((1, 2), keepdim=True) - low).clamp_min(torch.finfo(images.dtype).tiny)
    scaled = (images - low) / spread
    unknown = _start(scaled, lens)
    state, _ = _iterate(scaled, lens, unknown, lens.population.field, _FINE_STEPS)
    return _finish(scaled, lens, state, low[:, 0, 0], spread[:, 0, 0])


def _start(images: Images, lens: SmoothLens) -> Float[Tensor, "b q"]:
    """Return unknowns after the coarse iteration, from the best of several starts where the first was poor."""
    field = _coarser(lens.population.field, _COARSE_ARCSEC)
    coarse = pooled(images, field.n_pixels)
    candidates = _nearest(images, lens)
    state, chi2 = _iterate(coarse, lens, candidates[0], field, _COARSE_STEPS)
    best = state.unknown
    for candidate in candidates[1:]:
        poor = torch.nonzero((chi2 > _POOR) | ~torch.isfinite(chi2))[:, 0]
        if not len(poor):
            break
        again, its_chi2 = _iterate(coarse[poor], lens, candidate[poor], field, _COARSE_STEPS)
        better = its_chi2 < chi2[poor]
        best[poor[better]], chi2[poor[better]] = again.unknown[better], its_chi2[better]
    return best


def _nearest(images: Images, lens: SmoothLens) -> list[Float[Tensor, "b q"]]:
    """Return the lenses of the bank that correlate best with each image, with the scale and offset they need."""
    field = _coarser(lens.population.field, _BANK_ARCSEC)
    parameters, bank = _bank(lens)
    parameters, bank = parameters.to(images.device), bank.to(images.device)
    small = pooled(images, field.n_pixels).flatten(1)
    mean, bank_mean = small.mean(1, keepdim=True), bank.mean(1, keepdim=True)
    centred, bank_centred = small - mean, bank - bank_mean
    bank_norm = bank_centred.norm(dim=1)
    best = (centred @ (bank_centred / bank_norm[:, None]).T).topk(_STARTS, dim=1).indices
    starts = []
    for rows in best.unbind(1):
        scale = ((centred * bank_centred[rows]).sum(1) / bank_norm[rows] ** 2).clamp_min(1e-6)
        offset = mean[:, 0] - scale * bank_mean[rows, 0]
        starts.append(torch.cat([parameters[rows], scale.log()[:, None], offset[:, None]], 1))
    return starts


@lru_cache(maxsize=8)
def _bank(lens: SmoothLens) -> tuple[Float[Tensor, "k p"], Float[Tensor, "k m"]]:
    """Return parameters drawn from the population and their images on large pixels."""
    field = _coarser(lens.population.field, _BANK_ARCSEC)
    parameters = lens.bounded(lens.from_truth(draw(lens.population, 1, range(_BANK))))
    return parameters, torch.cat([lens.images(some, field).flatten(1) for some in torch.split(parameters, 256)])


def _iterate(
    images: Images, lens: SmoothLens, unknown: Float[Tensor, "b q"], field: Field2D, steps: int
) -> tuple[_State, Float[Tensor, " b"]]:
    """Return where Levenberg-Marquardt ends within `steps`, and chi2 per pixel there; settled images drop out."""
    state = _State(unknown.clone(), torch.full_like(unknown[:, 0], _DAMPING), torch.full_like(unknown[:, 0], torch.inf))
    chi2 = torch.full_like(state.damping, torch.inf)
    active = torch.arange(len(images), device=images.device)
    model, slopes = expected(lens, state.unknown, field)
    for _ in range(steps):
        own, at = images[active], state.unknown[active]
        weight = noise_weight(lens, own, at, model, field)
        difference = own - model
        before = (difference**2 * weight).sum((1, 2))
        step, gain = _step(slopes, weight, difference, state.damping[active])
        state.gain[active] = gain
        trial = _moved(lens, at, step)
        trial_model, trial_slopes = expected(lens, trial, field)
        after = ((own - trial_model) ** 2 * weight).sum((1, 2))
        better = after < before  # false for NaN
        state.unknown[active[better]] = trial[better]
        state.damping[active] *= torch.where(better, _CALMER, _HEAVIER)
        chi2[active] = torch.where(better, after, before) / own[0].numel()
        chosen = better[:, None, None]
        model, slopes = torch.where(chosen, trial_model, model), torch.where(chosen[:, None], trial_slopes, slopes)
        going = ~(better & (gain < _SETTLED)) & (state.damping[active] < 1e6)
        active, model, slopes = active[going], model[going], slopes[going]
        if not len(active):
            break
    return state, chi2


def expected(
    lens: SmoothLens, unknown: Float[Tensor, "b q"], field: Field2D
) -> tuple[Images, Float[Tensor, "b q n n"]]:
    """Return the images that the unknowns mean, and their derivatives by each of them."""
    image, slopes = lens.derivatives(unknown[:, :-2], field)
    scale, offset = unknown[:, -2].exp()[:, None, None], unknown[:, -1][:, None, None]
    light = scale * image
    slopes = torch.cat([scale[:, None] * slopes, light[:, None], torch.ones_like(light)[:, None]], 1)
    return light + offset, slopes


def noise_weight(
    lens: SmoothLens, images: Images, unknown: Float[Tensor, "b q"], model: Images, field: Field2D
) -> Images:
    """Return one over the variance of the noise in each pixel."""
    noise, own = lens.population.noise, lens.population.field
    area = (field.pixel_scale / own.pixel_scale) ** 2
    if isinstance(noise, PoissonNoise):
        scale, offset = unknown[:, -2].exp()[:, None, None], unknown[:, -1][:, None, None]
        return area / (scale * (model - offset + scale * noise.sky)).clamp_min(1e-12)
    return 1 / noise_variance(images[:, None])[:, 0]


def _step(
    slopes: Float[Tensor, "b q n n"], weight: Images, difference: Images, damping: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b q"], Float[Tensor, " b"]]:
    """Return the damped Gauss-Newton step and the gain in chi2 that the undamped one promises."""
    curvature, pull = _normal_equations(slopes, weight, difference)
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30)
    # Scaled to a unit diagonal: parameters of very different size meet in one matrix.
    unit = diagonal.rsqrt()
    scaled, scaled_pull = curvature * unit[:, :, None] * unit[:, None], pull * unit
    ones = torch.eye(pull.shape[1], dtype=pull.dtype, device=pull.device)
    solved = torch.linalg.solve(scaled + (damping.double()[:, None, None] + 1e-9) * ones, scaled_pull)
    undamped = torch.linalg.solve(scaled + 1e-9 * ones, scaled_pull)
    return (solved * unit).to(difference.dtype), (undamped * scaled_pull).sum(1).to(difference.dtype)


def _normal_equations(
    slopes: Float[Tensor, "b q n n"], weight: Images, difference: Images
) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]]:
    flat = slopes.flatten(2)
    weighted = flat * weight.flatten(1)[:, None]
    return (weighted @ flat.mT).double(), (weighted @ difference.flatten(1)[:, :, None])[..., 0].double()


def _moved(lens: SmoothLens, unknown: Float[Tensor, "b q"], step: Float[Tensor, "b q"]) -> Float[Tensor, "b q"]:
    """Return unknowns after a step, of three deviations of the population at most, inside the family's bounds."""
    most = torch.cat([3 * lens.spread.to(step), step.new_tensor([0.7, torch.inf])])
    moved = unknown + torch.maximum(torch.minimum(step, most), -most)
    return torch.cat([lens.bounded(moved[:, :-2]), moved[:, -2:]], 1)


def _finish(images: Images, lens: SmoothLens, state: _State, low: Tensor, spread: Tensor) -> MacroFit:
    """Return the fit in the units in which the images were given."""
    field, unknown = lens.population.field, state.unknown
    model, slopes = expected(lens, unknown, field)
    weight = noise_weight(lens, images, unknown, model, field)
    residual = (images - model) * weight.sqrt()
    curvature, _ = _normal_equations(slopes, weight, images - model)
    covariance = torch.linalg.pinv(curvature, hermitian=True)[:, :-2, :-2].to(images.dtype)
    freedom = residual[0].numel() - unknown.shape[1]
    return MacroFit(
        names=tuple(lens.names),
        parameters=unknown[:, :-2],
        covariance=covariance,
        scale=unknown[:, -2].exp() * spread,
        offset=unknown[:, -1] * spread + low,
        model=model * spread[:, None, None] + low[:, None, None],
        residual=residual,
        chi2=(residual**2).sum((1, 2)) / freedom,
        converged=state.gain < 1.0,
    )


def _coarser(field: Field2D, arcsec: float) -> Field2D:
    """Return the field in the largest pixels, up to `arcsec` a side, into which its own combine."""
    most = max(1, round(arcsec / field.pixel_scale))
    combined = next(k for k in range(most, 0, -1) if field.n_pixels % k == 0)
    return Field2D(
        n_pixels=field.n_pixels // combined,
        pixel_scale=field.pixel_scale * combined,
        supersample=field.supersample if combined == 1 else 1,
    )


def pooled(images: Images, n_pixels: int) -> Float[Tensor, "b m m"]:
    """Return images of n_pixels a side, each the mean of a block."""
    combined = images.shape[-1] // n_pixels
    return F.avg_pool2d(images[:, None], combined)[:, 0] if combined > 1 else images
