"""What an image looks like in a few numbers: light, its scatter and its elongation in rings about the centre, noise.

A network that tells classes of lenses apart may see nothing that sets a lens apart from what is none; these do.
"""

import torch
from jaxtyping import Float
from torch import Tensor

RINGS = 8


def appearance(images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b a"]:
    """Return of each image, scaled to 0..1, what its rings hold and how rough it is.

    In each of eight rings of equal width: the mean, the logarithm of the scatter, and the amplitudes of cos and sin of
    twice the angle. Then the logarithm of the root mean square of the Laplacian in the outermost ring and in all.
    """
    n = images.shape[-1]
    axis = (torch.arange(n, device=images.device, dtype=torch.float64) - (n - 1) / 2) / (n / 2)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    squared = x**2 + y**2
    ring = (squared.sqrt() * RINGS).long().flatten()
    member = torch.nn.functional.one_hot(ring.clamp_max(RINGS), RINGS + 1).double()[:, :RINGS]
    member = member / member.sum(0)
    light = images.double().flatten(1)
    mean = light @ member
    scatter = ((light**2) @ member - mean**2).clamp_min(1e-12).sqrt().log()
    turn = squared.clamp_min(1e-12)
    of_two = [(light * (part / turn).flatten()) @ member for part in (x**2 - y**2, 2 * x * y)]
    laplacian = torch.zeros_like(images.double())
    laplacian[..., 1:-1, 1:-1] = (
        images[..., 1:-1, 1:-1]
        - (images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]) / 4
    ).double()
    rough = (laplacian**2).flatten(1)
    roughness = torch.stack([rough @ member[:, -1], rough.mean(1)], 1).clamp_min(1e-16).log() / 2
    return torch.cat([mean, scatter, *of_two, roughness], 1)
