"""Delensing: the light of each image pixel is moved to its position beta in the source plane.

Sampling the observed image at theta - alpha would lens it a second time. `bilinear` distributes the light of a pixel
among the four nearest source pixels, so that lens parameters receive gradients. `overwrite` is the rule of the 2024
study, the last pixel wins, made deterministic and differentiable.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from darklens.physics.grid import Grid

Image = Float[Tensor, "b c n n"]
Position = Float[Tensor, "b n n"]


def bilinear(image: Image, beta_x: Position, beta_y: Position, grid: Grid) -> tuple[Image, Float[Tensor, "b 1 n n"]]:
    """Return the light and the number of image pixels that arrive in each source pixel.

    Args:
        image: Images.
        beta_x: Position of each pixel in the source plane, arcsec.
        beta_y: As `beta_x`.
        grid: The grid of the images, and of the source plane.

    Returns:
        The summed light, and the summed weight (how many image pixels arrive in each source pixel). Light that
        arrives outside the grid is lost; all other light is conserved.
    """
    total = summed(torch.cat([image, torch.ones_like(image[:, :1])], dim=1), beta_x, beta_y, grid)
    return total[:, :-1], total[:, -1:]


def summed(image: Image, beta_x: Position, beta_y: Position, grid: Grid) -> Image:
    """Return the summed light of `bilinear` alone, at half the cost for one channel."""
    n = grid.n_pixels
    column, row = grid.to_pixels(beta_x), grid.to_pixels(beta_y)
    column0, row0 = column.detach().floor(), row.detach().floor()
    column1_share, row1_share = column - column0, row - row0
    values = image.flatten(2)
    total = torch.zeros_like(values)
    for at_row, row_share in ((row0, 1 - row1_share), (row0 + 1, row1_share)):
        for at_column, column_share in ((column0, 1 - column1_share), (column0 + 1, column1_share)):
            inside = (at_row >= 0) & (at_row < n) & (at_column >= 0) & (at_column < n)
            target = torch.where(inside, at_row * n + at_column, 0.0).long().flatten(1)
            share = torch.where(inside, row_share * column_share, 0.0).flatten(1)
            total = total.scatter_add(2, target[:, None].expand_as(values), values * share[:, None])
    return total.reshape(image.shape)


def normalised(image: Image, beta_x: Position, beta_y: Position, grid: Grid) -> Image:
    """Return the mean light per source pixel: the delensed surface brightness, zero where no pixel arrives.

    Lensing conserves surface brightness, so with the true deflection this is the source.
    """
    total, weight = bilinear(image, beta_x, beta_y, grid)
    return total / weight.clamp_min(1e-3)


def overwrite(image: Image, beta_x: Position, beta_y: Position, grid: Grid) -> Image:
    """Return images whose pixels are moved to the nearest source pixel; of several, the last in raster order wins.

    In the 2024 study the winner was undefined and positions had no gradient. Here the gradient is that of the share
    that `bilinear` would give to the same source pixel. Overwritten pixels receive no gradient.
    """
    n = grid.n_pixels
    column, row = grid.to_pixels(beta_x), grid.to_pixels(beta_y)
    at_column, at_row = column.detach().round(), row.detach().round()
    inside = (at_row >= 0) & (at_row < n) & (at_column >= 0) & (at_column < n)
    # One spare cell takes the light that leaves the grid.
    target = torch.where(inside, at_row * n + at_column, n * n).long().flatten(1)
    order = torch.arange(n * n, device=image.device).expand_as(target)
    winner = torch.full((target.shape[0], n * n + 1), -1, device=image.device)
    winner = winner.scatter_reduce(1, target, order, "amax")[:, :-1]
    share = (1 - (column - at_column).abs()) * (1 - (row - at_row).abs())
    moving = image * (1 + (share - share.detach()))[:, None]
    light = moving.flatten(2).gather(2, winner.clamp_min(0)[:, None].expand(-1, image.shape[1], -1))
    return torch.where(winner[:, None] >= 0, light, 0.0).reshape(image.shape)


def gather(image: Image, beta_x: Position, beta_y: Position, grid: Grid) -> Image:
    """Return the observed image sampled at beta: the wrong operator, kept to measure its cost.

    The value at theta becomes that of the observed image at beta, so the image is lensed a second time. Light is not
    conserved; positions outside the grid are zero.
    """
    n = grid.n_pixels
    # grid_sample counts from -1 to 1 between the outer edges of the first and last pixels.
    positions = torch.stack([(2 * grid.to_pixels(beta) + 1) / n - 1 for beta in (beta_x, beta_y)], dim=-1)
    sampled: Image = F.grid_sample(image, positions, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled
