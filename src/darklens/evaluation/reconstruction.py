"""How well images are reproduced: error, peak signal-to-noise ratio, structural similarity, chi2 per pixel."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from darklens import rng
from darklens.data.noise_estimate import noise_variance
from darklens.models.autoencoder import reconstruction_error

Images = Float[Tensor, "b 1 n n"]


def measures(output: Images, images: Images) -> dict[str, Float[np.ndarray, " b"]]:
    """Return `mse`, `psnr_db`, `ssim` and `chi2_per_pixel` of each reconstruction of an image in [0, 1].

    chi2 is that of image - reconstruction with the noise of `noise_variance`: 1 where the reconstruction is the
    noise-free image, below 1 where it follows the noise.
    """
    output, images = output.float(), images.float()
    mse = reconstruction_error(output, images)
    similarity = structural_similarity_index_measure(output, images, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    chi2 = ((images - output) ** 2 / noise_variance(images)).mean((1, 2, 3))
    found = {"mse": mse, "psnr_db": -10 * torch.log10(mse), "ssim": similarity.reshape(-1), "chi2_per_pixel": chi2}
    return {name: value.double().cpu().numpy() for name, value in found.items()}


def summarise(
    found: dict[str, Float[np.ndarray, " n"]], *, seed: int = 0, resamples: int = 1000
) -> dict[str, dict[str, Any]]:
    """Return the mean over images of each measure, with its 95 % bootstrap interval."""
    g = rng.generator(seed, "bootstrap")
    n = len(next(iter(found.values())))
    drawn = [g.integers(0, n, n) for _ in range(resamples)]
    summary = {}
    for name, values in found.items():
        low, high = np.percentile([values[rows].mean() for rows in drawn], [2.5, 97.5])
        summary[name] = {"value": float(values.mean()), "ci95": [float(low), float(high)]}
    return summary
