"""A small classifier that was never trained, and folders of image files for it, some of them bad."""

import os

import numpy as np
import torch

from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.models.lens_residual import LensResidualConfig
from darklens.models.resnet_simple import ResNetSimpleConfig

PIXELS = 44


def small_bundle(config=None, *, seed=0, n_pixels=PIXELS):
    """Return a bundle with random weights."""
    model = config or ResNetSimpleConfig()
    contract = Contract.untrained(model, n_pixels=n_pixels, pixel_scale=0.05, recipe="small")
    torch.manual_seed(seed)
    network = contract.build()
    if not isinstance(contract.model, LensResidualConfig):
        _normalise(network, contract)
    return Bundle(contract, network)


def _normalise(network, contract):
    """Let normalisation layers see some images, else all images have nearly the same probabilities."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(contract.preprocess(torch.from_numpy(rings(32, contract.n_pixels, seed=99))))


def rings(n, n_pixels=PIXELS, seed=0):
    """Images (n, 1, n_pixels, n_pixels) of noisy rings of several radii."""
    axis = np.linspace(-1, 1, n_pixels)
    radius = np.hypot(axis[:, None], axis[None])
    generator = np.random.default_rng(seed)
    light = np.exp(-(((radius - generator.uniform(0.2, 0.8, (n, 1, 1, 1))) / 0.1) ** 2))
    return generator.poisson(20 + 100 * light).astype(np.float32)


def fill(folder, n, *, different=20, bad=()):
    """Write n files, links to a few different ones but for the bad ones."""
    folder.mkdir(parents=True)
    originals = folder.parent / f"{folder.name}-originals"
    originals.mkdir()
    for i, image in enumerate(rings(min(n, different))):
        np.save(originals / f"{i}.npy", image[0])
    for i in range(n):
        if i in bad:
            (folder / f"{i:06d}.npy").write_bytes(b"no image")
        else:
            os.link(originals / f"{i % different}.npy", folder / f"{i:06d}.npy")
