"""Statistics of an image in rings about its centre: brightness, scatter, quadrupole and roughness.

They are features of the out-of-distribution score: a network trained to separate classes of lenses may ignore what
separates lenses from other images.
"""

import torch
from jaxtyping import Float
from torch import Tensor

RINGS = 8


def ring_statistics(images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b f"]:
    """Return the statistics of each image, scaled to 0..1.

    For each of eight rings of equal width: the mean, the logarithm of the standard deviation, and the amplitudes of the
    cosine and sine of twice the azimuth. Last, the logarithm of the root mean square of the Laplacian in the outermost
    ring and in the whole image.
    """
    n = images.shape[-1]
    axis = (torch.arange(n, device=images.device, dtype=torch.float64) - (n - 1) / 2) / (n / 2)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    squared = x**2 + y**2
    ring = (squared.sqrt() * RINGS).long().flatten()
    weight = torch.nn.functional.one_hot(ring.clamp_max(RINGS), RINGS + 1).double()[:, :RINGS]
    weight = weight / weight.sum(0)
    light = images.double().flatten(1)
    mean = light @ weight
    scatter = ((light**2) @ weight - mean**2).clamp_min(1e-12).sqrt().log()
    radius2 = squared.clamp_min(1e-12)
    quadrupole = [(light * (part / radius2).flatten()) @ weight for part in (x**2 - y**2, 2 * x * y)]
    laplacian = torch.zeros_like(images.double())
    laplacian[..., 1:-1, 1:-1] = (
        images[..., 1:-1, 1:-1]
        - (images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]) / 4
    ).double()
    power = (laplacian**2).flatten(1)
    roughness = torch.stack([power @ weight[:, -1], power.mean(1)], 1).clamp_min(1e-16).log() / 2
    return torch.cat([mean, scatter, *quadrupole, roughness], 1)
