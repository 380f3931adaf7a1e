"""A batch of images with all that fits of perturbers need: both detectors, noise, and the gain of the smooth fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.fit import misfit
from darklens.fit.evidence import Templates
from darklens.fit.fitter import Fitter
from darklens.fit.levenberg import FitState, minimise
from darklens.fit.model import FitParameters, Model
from darklens.fit.noise import Gain, Maps, Noise


@dataclass(frozen=True)
class PreparedImages:
    """A batch of images on both detectors, with their noise and the gain of the smooth fit."""

    fitter: Fitter
    templates: Templates
    pixels: Maps
    noise: Noise
    coarse_pixels: Maps
    coarse_noise: Noise
    gain: Gain

    @property
    def n_smooth(self) -> int:
        """Number of parameters before those of the perturbers."""
        return self.fitter.model().n_smooth

    def weight(self, fit: FitState) -> Maps:
        """Return the inverse variance of each pixel."""
        return self.noise.weight(fit.model, self.gain)

    def residual(self, fit: FitState) -> Maps:
        """Return (image - model) / sigma around the optical axis."""
        return self.templates.cut((self.pixels - fit.model) * self.weight(fit).sqrt())

    def evidence(self, fit: FitState) -> Maps:
        """Return delta chi2 of a point mass at each position, in addition to a fit."""
        return self.templates.points(self.pixels - fit.model, self.weight(fit), fit.slopes).delta_chi2

    def rows(self, rows: Tensor) -> "PreparedImages":
        """Return a selection of the images."""
        return replace(
            self,
            pixels=self.pixels[rows],
            noise=self.noise.rows(rows),
            coarse_pixels=self.coarse_pixels[rows],
            coarse_noise=self.coarse_noise.rows(rows),
            gain=self.gain[rows],
        )

    def fit(self, model: Model, start: FitParameters, steps: int, *, with_slopes: bool = True) -> FitState:
        """Return the fit of a model on the fine detector."""
        return minimise(model, self.pixels, self.noise, start, steps=steps, gain=self.gain, with_slopes=with_slopes)

    def score_tests(self, smooth: FitState, fits: Sequence[FitState]) -> Float[Tensor, "b h t"]:
        """Return the score tests `misfit.NAMES` of h fits; the templates are those of the smooth fit."""
        lens, cut = self.fitter.lens, self.templates.cut
        value = {name: torch.full_like(smooth.deviance, float(fixed)) for name, fixed in lens.fixed.items()}
        value |= dict(zip(lens.names, smooth.parameters.unbind(1), strict=False))
        x, y = self.templates.grid.axes(dtype=smooth.model.dtype, device=smooth.model.device)
        templates = misfit.Templates.of(x, y, theta_E=value["theta_E"], centre=(value["centre_x"], value["centre_y"]))
        source = (lens.names.index("source_x"), lens.names.index("source_y"))
        parts = [(cut(self.pixels - fit.model), cut(fit.model), cut(self.weight(fit)), cut(fit.slopes)) for fit in fits]
        return torch.stack([misfit.score_tests(templates, *part, source=source) for part in parts], 1)
