"""From the image plane to the source plane: beta = theta - alpha(theta)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles import point

Plane = Float[Tensor, "*#shape"]


def source_plane(x: Plane, y: Plane, deflections: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return beta (arcsec) of image-plane positions under the sum of the given deflections (arcsec)."""
    beta_x, beta_y = x, y
    for alpha_x, alpha_y in deflections:
        beta_x, beta_y = beta_x - alpha_x, beta_y - alpha_y
    return beta_x, beta_y


def point_masses_deflection(
    x: Float[Tensor, "n n"],
    y: Float[Tensor, "n n"],
    *,
    theta_E: Float[Tensor, "b k"],
    centre_x: Float[Tensor, "b k"],
    centre_y: Float[Tensor, "b k"],
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    """Return the deflection (arcsec) of k point masses per lens; masses with theta_E = 0 deflect nothing.

    Memory does not grow with k: the masses are summed one by one.
    """
    total_x = x.new_zeros(theta_E.shape[0], *x.shape)
    total_y = torch.zeros_like(total_x)
    for k in range(theta_E.shape[1]):
        mass, at_x, at_y = (value[:, k, None, None] for value in (theta_E, centre_x, centre_y))
        from_x, from_y = x - at_x, y - at_y
        scale = point.deflection_over_distance(from_x, from_y, theta_E=mass)
        total_x.addcmul_(scale, from_x)
        total_y.addcmul_(scale, from_y)
    return total_x, total_y


def k_map_deflection(
    x: Float[Tensor, "n n"], y: Float[Tensor, "n n"], k: Float[Tensor, "b n n"], *, grad_k: str = "ignore"
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    """Deflection of the potential psi = k(x, y) |theta|, the ansatz of the 2024 study (its eq. 2).

    alpha = k theta / |theta| + |theta| grad k.

    Args:
        x: Pixel coordinates in arcsec, x along the last axis, evenly spaced.
        y: Pixel coordinates in arcsec, y along the first axis.
        k: Map in arcsec; for a constant k it is the Einstein radius of a singular isothermal sphere.
        grad_k: "ignore" drops the second term, as the study does; "exact" keeps it, with central differences.

    Returns:
        alpha_x and alpha_y in arcsec. The direction at the origin is undefined and the first term zero there.

    Raises:
        ValueError: If `grad_k` is neither.
    """
    if grad_k not in ("ignore", "exact"):
        raise ValueError(f"grad_k must be 'ignore' or 'exact', got {grad_k!r}")
    r = torch.sqrt(x * x + y * y)
    safe = torch.where(r > 0, r, 1.0)
    alpha_x, alpha_y = k * (x / safe), k * (y / safe)
    if grad_k == "exact":
        spacing = float(x[0, 1] - x[0, 0])
        dk_dy, dk_dx = torch.gradient(k, spacing=spacing, dim=(1, 2))
        alpha_x, alpha_y = alpha_x + r * dk_dx, alpha_y + r * dk_dy
    return alpha_x, alpha_y
