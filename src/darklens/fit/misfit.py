"""Score tests of a fit: would effects that its model lacks explain the residuals?

Each group of effects is a few templates, the derivatives of the image with respect to parameters that the model keeps
at zero. Delta chi2 of a group is that of one weighted linear regression of the residuals on its templates, marginalised
over the parameters of the model (Rao 1948, Proc. Camb. Phil. Soc. 44, 50). For a correct model it follows a chi2
distribution with one degree of freedom per template.
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.constants import constant
from darklens.fit.noise import Maps
from darklens.kernels import smooth_fit
from darklens.kernels.fields import Fields, Recipe, compile_fields
from darklens.physics.profiles import multipole, sis

GROUPS = ("psf", "lens_shape", "sky_slope", "lens_light")
NAMES = (*(f"misfit_{group}" for group in GROUPS), "misfit_pixel", "misfit_spot", "misfit_spot_x", "misfit_spot_y")
"""Columns of the tests: delta chi2 of each group, the largest absolute residual of a pixel and of a spot of 3 x 3
pixels (standard deviations), and the position of that spot (arcsec)."""

_LENS_LIGHT_RADII = (0.15, 0.5)  # arcsec
_SMALLEST_SHARE = 1e-4  # of the information of a template that the model must leave to it


@dataclass(frozen=True)
class Templates:
    """The templates of b lenses that do not depend on a fit.

    Attributes:
        deflections: x and y of deflections by which the lens may differ (b, k, m, m), arcsec.
        sky: Planes of a sloped sky (b, 2, m, m).
        lens_light: Light about the centre of the lens (b, 2, m, m).
        x: Positions of the pixels (m,), arcsec.
        y: Positions of the pixels (m,), arcsec.
    """

    deflections: tuple[Tensor, Tensor]
    sky: Tensor
    lens_light: Tensor
    x: Float[Tensor, " m"]
    y: Float[Tensor, " m"]

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "1 m"],
        y: Float[Tensor, "m 1"],
        *,
        theta_E: Float[Tensor, " b"],
        centre: tuple[Float[Tensor, " b"], Float[Tensor, " b"]],
    ) -> "Templates":
        """Return the templates for pixels at x, y and lenses with an Einstein radius and a centre, all in arcsec."""
        # A fit that failed may have values that are not finite; its tests are of no interest.
        lenses = torch.stack([v.nan_to_num(1.0) for v in (theta_E, *centre)], 1)
        shape = len(lenses), -1, y.shape[0], x.shape[1]
        if smooth_fit.usable(lenses):
            at_x, at_y = (v.expand(shape[2:]).reshape(-1) for v in (x, y))
            planes = _compiled_planes()(lenses, x=at_x, y=at_y).reshape(shape)
        else:
            planes = _planes(lenses, x, y)
        n = len(_LENS_LIGHT_RADII)
        along, across = planes[:, n:].reshape(len(lenses), -1, 2, *shape[2:]).unbind(2)
        sky = torch.stack([v.expand(shape[2:]) for v in (x, y)]).expand(len(lenses), -1, -1, -1)
        return cls((along, across), sky, lens_light=planes[:, :n], x=x.flatten(), y=y.flatten())


def _planes(lenses: Float[Tensor, "b 3"], x: Tensor, y: Tensor) -> Float[Tensor, "b k m m"]:
    """Return the lens light, and x and y of each deflection, for theta_E and centre of b lenses."""
    theta_E, centre_x, centre_y = lenses[:, :, None, None].unbind(1)
    from_x, from_y = x - centre_x, y - centre_y
    distance = torch.hypot(from_x, from_y)
    lens_light = [torch.exp(-distance / scale) for scale in _LENS_LIGHT_RADII]
    deflections = [a for pair in _shape_deflections(from_x, from_y, theta_E) for a in pair]
    return torch.stack([v.expand_as(distance) for v in (*lens_light, *deflections)], 1)


@cache
def _compiled_planes() -> Fields:
    recipe = Recipe(_planes, (torch.full((1, 3), 0.1), torch.full((1, 1), 0.3), torch.full((1, 1), 0.7)))
    return compile_fields({"planes": recipe}, "A fit with kernels", "set DARKLENS_KERNELS=0")["planes"]


def score_tests(
    templates: Templates,
    difference: Maps,
    model: Maps,
    weight: Maps,
    slopes: Float[Tensor, "b q m m"],
    *,
    source: tuple[int, int],
) -> Float[Tensor, "b t"]:
    """Return the columns `NAMES` for b fits.

    Args:
        templates: Templates of these lenses.
        difference: Image minus model.
        model: Model images.
        weight: Inverse variance of each pixel; zero for masked pixels.
        slopes: Derivatives of the model with respect to its parameters.
        source: Indices of the parameters source_x and source_y.
    """
    difference, model, weight = (v.nan_to_num(0.0, 0.0, 0.0) for v in (difference, model, weight))
    by_x, by_y = (slopes[:, i, None].nan_to_num(0.0, 0.0, 0.0) for i in source)
    groups = {
        "psf": _laplacian(model)[:, None],
        "lens_shape": by_x * templates.deflections[0] + by_y * templates.deflections[1],
        "sky_slope": templates.sky,
        "lens_light": templates.lens_light,
    }
    score, information = _marginalised(difference, weight, slopes, torch.cat([groups[name] for name in GROUPS], 1))
    # One block of the matrix for each group.
    group = constant(
        tuple(k for k, name in enumerate(GROUPS) for _ in range(groups[name].shape[1])), torch.long, score.device
    )
    within = group[:, None] == group
    solution = torch.linalg.pinv(information * within, hermitian=True) @ score[:, :, None]
    delta_chi2 = score.new_zeros(len(score), len(GROUPS)).index_add_(1, group, score * solution[..., 0])
    standardised = difference * weight.sqrt()
    spot = torch.nn.functional.avg_pool2d(standardised[:, None], 3, 1, 1, divisor_override=3)[:, 0].abs()
    largest, index = spot.flatten(1).max(1)
    columns, rows = index % spot.shape[-1], index // spot.shape[-1]
    at = (templates.x[columns], templates.y[rows])
    return torch.stack([*delta_chi2.to(largest).unbind(1), standardised.abs().amax((1, 2)), largest, *at], 1)


def _shape_deflections(x: Tensor, y: Tensor, theta_E: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return derivatives of the deflection of an isothermal sphere by its slope and by multipoles m = 2, 3, 4, arcsec.

    To first order, m = 2 is an ellipticity.
    """
    alpha_x, alpha_y = sis.deflection(x, y, theta_E=theta_E)
    # The deflection of a power law is proportional to (r / theta_E)^(2 - slope).
    by_slope = -(torch.hypot(x, y).clamp_min(1e-3) / theta_E).log()
    derivatives = [(alpha_x * by_slope, alpha_y * by_slope)]
    zero = torch.zeros_like(theta_E)
    for m in (2, 3, 4):
        for a, b in ((theta_E, zero), (zero, theta_E)):
            derivatives.append(multipole.deflection(x, y, a=a, b=b, e1=zero, e2=zero, m=m))
    return derivatives


def _laplacian(maps: Maps) -> Maps:
    """Return the second differences: a wider Gaussian PSF adds sigma d sigma times the Laplacian of the image."""
    padded = torch.nn.functional.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    centre = padded[:, 1:-1, 1:-1]
    return padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2] - 4 * centre


def _marginalised(
    difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"], templates: Float[Tensor, "b t m m"]
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t t"]]:
    """Return score and Fisher information of the templates of unit norm, with the parameters of the model profiled."""
    root = weight.sqrt().flatten(1)[:, None]
    columns = torch.cat([slopes.flatten(2), templates.flatten(2), difference.flatten(1)[:, None]], 1)
    columns = columns.mul_(root).nan_to_num_(0.0, 0.0, 0.0)
    products = (columns @ columns.mT).double()
    unit = torch.diagonal(products, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    unit[:, -1] = 1
    products *= unit[:, :, None] * unit[:, None]
    q = slopes.shape[1]
    model, added, residual = slice(q), slice(q, -1), slice(-1, None)
    inverse = torch.linalg.pinv(products[:, model, model], hermitian=True, rtol=1e-6)
    projected = products[:, added, model] @ inverse
    score = products[:, added, residual] - projected @ products[:, model, residual]
    information = products[:, added, added] - projected @ products[:, model, added]
    kept = torch.diagonal(information, dim1=1, dim2=2) > _SMALLEST_SHARE
    both = kept[:, :, None] & kept[:, None]
    return torch.where(kept, score[..., 0], 0.0), torch.where(both, information, 0.0)
