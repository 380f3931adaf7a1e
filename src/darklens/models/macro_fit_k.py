"""k from a fit in place of a network: the Einstein radius of the smooth lens of each image."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from darklens.errors import ConfigError
from darklens.fit.fitter import fitter_of
from darklens.fit.macro import check_images, fit_smooth, unit_range
from darklens.fit.smooth import CENTRE
from darklens.models.base import OnPopulation
from darklens.populations.population import Population


class MacroFitConfig(OnPopulation):
    """k is theta_E of the smooth lens that is fitted to each image; nothing is learnt."""

    kind: Literal["macro_fit"] = "macro_fit"

    @property
    def fit_settings(self) -> None:
        """None, since the network takes images."""
        return None


class MacroFitK(nn.Module):
    """Fits the smooth lens of a population to the inputs of a network, which may be cropped and binned images.

    Args:
        config: Population, and whether the lens is fixed at the centre of the image.
        n_pixels: Pixels along a side of the inputs.
        pixel_scale: Their pixel scale, arcsec.

    Raises:
        ConfigError: If the pixels are not blocks of pixels of the population.
    """

    def __init__(self, config: MacroFitConfig, *, n_pixels: int, pixel_scale: float) -> None:
        super().__init__()
        self._centred = config.centred
        self._block, self._population = _on_inputs(config.population, n_pixels, pixel_scale)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "b 1 n n"]
    ) -> tuple[Float[Tensor, " b"], tuple[Float[Tensor, " b"], Float[Tensor, " b"]]]:
        """Return theta_E and the position of the lens (x, y), arcsec, for images in any linear scale.

        Raises:
            ValueError: If the images are not finite or of another size.
        """
        # The fit cannot be traced. As a decorator, `disable` would import the compiler at start-up, two seconds.
        fit = torch.compiler.disable(self._fit) if torch.compiler.is_compiling() else self._fit  # type: ignore[no-untyped-call]
        return fit(images)

    def _fit(
        self, images: Float[Tensor, "b 1 n n"]
    ) -> tuple[Float[Tensor, " b"], tuple[Float[Tensor, " b"], Float[Tensor, " b"]]]:
        fitter = fitter_of(self._population, centred=self._centred, device=images.device)
        # The fit averages blocks of pixels itself; repeated pixels keep the noise of a block what the fit expects.
        pixels = images[:, 0].float().repeat_interleave(self._block, -1).repeat_interleave(self._block, -2)
        check_images(pixels, fitter)
        scaled, _, _ = unit_range(pixels)
        with torch.autocast(images.device.type, enabled=False):
            fit = fit_smooth(scaled, fitter).state
        values = dict(zip(fitter.lens.names, fit.parameters.unbind(1), strict=False))  # scale and offset follow
        constant = fitter.lens.fixed
        theta_E, x, y = (
            values[name] if name in values else constant[name].to(pixels).expand(len(pixels))
            for name in ("theta_E", *CENTRE)
        )
        return theta_E, (x, y)


def _on_inputs(population: Population, n_pixels: int, pixel_scale: float) -> tuple[int, Population]:
    """Return the side of an input pixel in pixels of the population, and the population on the field of the inputs."""
    field = population.field
    block = max(1, round(pixel_scale / field.pixel_scale))
    if abs(pixel_scale - block * field.pixel_scale) > 1e-3 * pixel_scale:
        raise ConfigError(
            f"model.k_network: the inputs have pixels of {pixel_scale:g} arcsec, which are no blocks of the pixels of "
            f"{population.name}, {field.pixel_scale:g} arcsec; choose the population of the images."
        )
    resized = field.model_copy(update={"n_pixels": n_pixels * block})
    return block, population.model_copy(update={"field": resized})
