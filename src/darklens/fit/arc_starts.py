"""Starts of fits of lenses with lens light: a fit of the light alone, and the arcs of a bank most like what it leaves.

The light of the lens is often ten times as bright as the arcs. With it, an image would be most like those of a bank
that have similar lens light, whatever their arcs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.data.noise_estimate import noise_variance
from darklens.fit.scene_lens import SceneLens
from darklens.fit.scene_solver import Data, Solver
from darklens.fit.scene_starts import LIGHT_ERROR, fit_light
from darklens.scene.imaging import Detector, block_mean

_DARKEST = 10  # one pixel in so many has no light
_BINS = 8  # of the Einstein radius: the best arcs of each are candidates


@dataclass(frozen=True)
class ArcBank:
    """Images of lensed sources alone.

    Attributes:
        parameters: Parameters of the lenses (k, p), in the order of their Einstein radius.
        arcs: Their images, without lens light (k, m, m).
    """

    parameters: Float[Tensor, "k p"]
    arcs: Float[Tensor, "k m m"]


def nearest_arcs(
    images: Float[Tensor, "b n n"], lens: SceneLens, bank: ArcBank, detector: Detector, n_starts: int
) -> list[Float[Tensor, "b q"]]:
    """Return starts of fits with their scale and offset, best first.

    Args:
        images: Images in any linear unit.
        lens: Their lens model, with lens light.
        bank: Arcs on the pixels of the detector.
        detector: Large pixels, which divide the images into blocks.
        n_starts: Number of starts of each image.
    """
    m = bank.arcs.shape[-1]
    side = images.shape[-1] // m
    small, variance = block_mean(images, side), block_mean(noise_variance(images[:, None])[:, 0], side) / side**2
    dark = small.flatten(1).sort(1).values[:, : m * m // _DARKEST]
    offset = dark.mean(1)
    pixels = small - offset[:, None, None]
    assert lens.light_scene is not None
    light = fit_light(Solver(lens.light_scene, detector), Data(pixels, 1 / variance))
    weight = 1 / (variance + (LIGHT_ERROR * light.model) ** 2)
    arcs = bank.arcs.flatten(1)
    projected = (weight * (pixels - light.model)).flatten(1) @ arcs.T
    norm = weight.flatten(1) @ (arcs**2).T
    gain = projected.clamp_min(0) ** 2 / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    by_bin = torch.stack([part.max(1).values for part in gain.tensor_split(_BINS, 1)], 1)
    at = torch.stack([part.argmax(1) for part in gain.tensor_split(_BINS, 1)], 1)
    first = torch.tensor([int(p[0]) for p in torch.arange(len(arcs)).tensor_split(_BINS)], device=at.device)
    best = (at + first).gather(1, by_bin.topk(n_starts, dim=1).indices)
    rows = torch.arange(len(images), device=images.device)
    starts = []
    for k in best.unbind(1):
        scale = (projected[rows, k] / norm[rows, k]).clamp_min(1e-6)
        smooth = lens.with_light(bank.parameters[k], light.internal, light.amplitudes / scale[:, None])
        starts.append(torch.cat([smooth, scale.log()[:, None], offset[:, None]], 1))
    return starts
