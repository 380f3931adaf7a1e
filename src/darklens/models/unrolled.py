"""A smooth fit whose last steps are layers of the network, trained end to end with the classifier of what it leaves."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.fit.fitter import fitter
from darklens.fit.levenberg import damped_step
from darklens.fit.macro import check_images, coarse_fit, unit_range
from darklens.fit.noise import Noise, normal_equations
from darklens.models.base import HeadClassifier, OnPopulation
from darklens.models.conv_encoder import ConvEncoder

_FIRST_DAMPING = 1e-2  # as the fit's own
_FIRST_TRUST, _FIRST_SLOPE = 3.0, 1e-2  # the logit of almost full trust, and how it varies at first
_SIGMAS = 3.0  # standard deviations, to the size that a network likes
_LARGEST = 30.0  # standard deviations, of what it is shown
_CHI2 = 0.1  # in ln chi2 per block, to the size that a network likes


class UnrolledResidualConfig(OnPopulation):
    """Ends the smooth fit in layers that learn where to trust the image, then classifies the residual."""

    kind: Literal["unrolled_residual"] = "unrolled_residual"
    steps: int = Field(default=3, ge=1, le=10, description="steps of the fit that are layers")
    width: int = Field(default=16, ge=4, description="channels of the classifier's first convolution")

    @property
    def fit_settings(self) -> None:
        """None: the network takes images, since layers of it end the fit."""
        return None


class UnrolledResidual(HeadClassifier):
    """Gauss-Newton steps with learnt weights of the pixels and learnt damping, then a small network on the residual.

    The fit starts where that of `fit_macro` on coarsely sampled light ends. Its further steps are on the light as the
    population samples it and differentiable: each weighs the pixels by one over their variance times a trust between 0
    and 1 that a small network gives them from residual and model. What a subhalo bends can so be left out of the fit,
    which otherwise hides part of it. Trust and damping are taught by the classes alone.
    """

    def __init__(self, config: UnrolledResidualConfig, *, n_classes: int) -> None:
        super().__init__()
        self._config = config
        self.log_damping = nn.Parameter(torch.full((config.steps,), math.log(_FIRST_DAMPING)))
        self.trust = nn.Sequential(
            *(nn.Conv2d(2, 8, 5, padding=2), nn.ReLU(inplace=True)),
            *(nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(inplace=True)),
            nn.Conv2d(8, 1, 1),
        )
        last = self.trust[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.normal_(last.weight, std=_FIRST_SLOPE)
        nn.init.constant_(last.bias, _FIRST_TRUST)
        self.encoder = ConvEncoder(3, config.width)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(ConvEncoder.features(config.width) + 1, n_classes))

    def encode(self, inputs: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b f"]:
        """Return the features of the residual maps of images, and their ln chi2 per pixel."""
        maps = self.residual(inputs)
        chi2 = maps[:, 0].square().mean((1, 2)).clamp_min(1e-3)
        scaled = maps / maps.new_tensor([_SIGMAS, 1.0, 1.0])[:, None, None]
        return torch.cat([self.encoder(scaled), chi2.log()[:, None] / _CHI2], 1)

    def residual(self, images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b 3 m m"]:
        """Return (image - smooth lens) / noise, the smooth lens and the trust, in blocks of pixels."""
        with torch.autocast(images.device.type, enabled=False):
            return self._fit(images[:, 0].float())

    def _fit(self, images: Float[Tensor, "b n n"]) -> Float[Tensor, "b 3 m m"]:
        own = fitter(self._config.population, centred=self._config.centred)
        check_images(images, own)
        model = own.model()
        with torch.no_grad():
            scaled, _, _ = unit_range(images)
            unknown = coarse_fit(scaled, own).unknown
            pixels, noise = own.on_fine(scaled, None)
        gain = model.gain(unknown)
        for log_damping in self.log_damping:
            expected, slopes = model.expected(unknown)
            trust, _ = self._trusted(pixels, expected, noise, gain)
            weight = noise.weight(expected, gain) * trust
            curvature, pull = normal_equations(slopes, weight, pixels - expected)
            damping = log_damping.exp().expand(len(unknown))
            unknown = model.moved(unknown, damped_step(curvature, pull, damping).to(unknown))
        expected, _ = model.expected(unknown)
        trust, residual = self._trusted(pixels, expected, noise, gain)
        return torch.stack([residual, expected, trust], 1)

    def _trusted(
        self, pixels: Tensor, expected: Tensor, noise: Noise, gain: Tensor
    ) -> tuple[Float[Tensor, "b m m"], Float[Tensor, "b m m"]]:
        """Return the trust in each block, and the residual it was told from."""
        residual = (pixels - expected) * noise.weight(expected, gain).sqrt()
        residual = residual.nan_to_num(0.0).clamp(-_LARGEST, _LARGEST)
        seen = torch.stack([residual / _SIGMAS, expected], 1)
        return self.trust(seen)[:, 0].sigmoid(), residual
