"""An unrolled fit: its last steps are layers, trained end to end with a classifier of the residual."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.constants import constant
from darklens.fit.fitter import fitter_of
from darklens.fit.levenberg import damped_step
from darklens.fit.macro import check_images, coarse_fit, unit_range
from darklens.fit.noise import Noise, normal_equations
from darklens.models.base import HeadClassifier, OnPopulation
from darklens.models.conv_encoder import ConvEncoder

_INITIAL_DAMPING = 1e-2  # as in the fit
_INITIAL_TRUST, _INITIAL_WEIGHT_STD = 3.0, 1e-2  # the logit of almost full trust, with small variations
_RESIDUAL_UNIT = 3.0  # standard deviations
_MAX_RESIDUAL = 30.0  # standard deviations
_LN_CHI2_UNIT = 0.1


class UnrolledResidualConfig(OnPopulation):
    """Ends the smooth fit in layers that learn which pixels to trust, then classifies the residual."""

    kind: Literal["unrolled_residual"] = "unrolled_residual"
    steps: int = Field(default=3, ge=1, le=10, description="fit steps that are layers")
    width: int = Field(default=16, ge=4, le=4096, description="channels of the classifier's first convolution")

    @property
    def fit_settings(self) -> None:
        """None, since the network takes images: its layers complete the fit."""
        return None


class UnrolledResidual(HeadClassifier):
    """Gauss-Newton steps with learned pixel weights and learned damping, then a small network on the residual.

    The fit starts from that of `fit_macro` on coarsely sampled light. Its further steps sample the light like the
    population and are differentiable. The weight of a pixel is its inverse variance times a trust between 0 and 1,
    which a small network predicts from residual and model. The fit can thus ignore the pixels that a subhalo changes,
    and does not absorb part of its signal. Only the class labels train the trust and the damping.
    """

    def __init__(self, config: UnrolledResidualConfig, *, n_classes: int) -> None:
        super().__init__()
        self._config = config
        self.log_damping = nn.Parameter(torch.full((config.steps,), math.log(_INITIAL_DAMPING)))
        self.trust = nn.Sequential(
            *(nn.Conv2d(2, 8, 5, padding=2), nn.ReLU(inplace=True)),
            *(nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(inplace=True)),
            nn.Conv2d(8, 1, 1),
        )
        last = self.trust[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.normal_(last.weight, std=_INITIAL_WEIGHT_STD)
        nn.init.constant_(last.bias, _INITIAL_TRUST)
        self.encoder = ConvEncoder(3, config.width)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(ConvEncoder.features(config.width) + 1, n_classes))

    def encode(self, inputs: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b f"]:
        """Return the features of the residual maps of images, and their ln chi2 per pixel."""
        maps = self.residual(inputs)
        chi2 = maps[:, 0].square().mean((1, 2)).clamp_min(1e-3)
        scaled = maps / constant((_RESIDUAL_UNIT, 1.0, 1.0), maps.dtype, maps.device)[:, None, None]
        return torch.cat([self.encoder(scaled), chi2.log()[:, None] / _LN_CHI2_UNIT], 1)

    def residual(self, images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b 3 m m"]:
        """Return (image - smooth lens) / noise, the smooth lens and the trust, in pixels of the fit."""
        with torch.autocast(images.device.type, enabled=False):
            return self._fit(images[:, 0].float())

    def _fit(self, images: Float[Tensor, "b n n"]) -> Float[Tensor, "b 3 m m"]:
        population_fitter = fitter_of(self._config.population, centred=self._config.centred, device=images.device)
        check_images(images, population_fitter)
        model = population_fitter.model()
        with torch.no_grad():
            scaled, _, _ = unit_range(images)
            parameters = coarse_fit(scaled, population_fitter).parameters
            pixels, noise = population_fitter.on_fine(scaled, None)
        gain = model.gain(parameters)
        for log_damping in self.log_damping:
            expected, slopes = model.expected(parameters)
            trust, _ = self._trust_and_residual(pixels, expected, noise, gain)
            weight = noise.weight(expected, gain) * trust
            curvature, rhs = normal_equations(slopes, weight, pixels - expected)
            damping = log_damping.exp().expand(len(parameters))
            parameters = model.apply_step(parameters, damped_step(curvature, rhs, damping).to(parameters))
        expected, _ = model.expected(parameters)
        trust, residual = self._trust_and_residual(pixels, expected, noise, gain)
        return torch.stack([residual, expected, trust], 1)

    def _trust_and_residual(
        self, pixels: Tensor, expected: Tensor, noise: Noise, gain: Tensor
    ) -> tuple[Float[Tensor, "b m m"], Float[Tensor, "b m m"]]:
        """Return the trust in each pixel, and the residual in standard deviations."""
        residual = (pixels - expected) * noise.weight(expected, gain).sqrt()
        residual = residual.nan_to_num(0.0).clamp(-_MAX_RESIDUAL, _MAX_RESIDUAL)
        inputs = torch.stack([residual / _RESIDUAL_UNIT, expected], 1)
        return self.trust(inputs)[:, 0].sigmoid(), residual
