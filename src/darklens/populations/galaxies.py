"""Cut-outs of real galaxies as sources: listing, reading and cleaning."""

import hashlib
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.data.arrays import border
from darklens.data.readers import read_finite_image
from darklens.errors import ConfigError, InputError
from darklens.files import sha256_of
from darklens.populations.light_models import ImageLight

_BORDER = 0.08  # of the side: width of the frame in which the sky is measured
_NOISE_CUT = 2.0  # standard deviations of the sky; fainter pixels are set to zero


@lru_cache(maxsize=8)
def files(spec: ImageLight) -> tuple[Path, ...]:
    """Return the cut-outs that a population uses, in the order of their names.

    Raises:
        ConfigError: If the folder has none, or their digest is not that of the population.
    """
    if not spec.folder.is_dir():
        raise ConfigError(f"{spec.folder} is not a folder; give one with .fits or .npy cut-outs.")
    paths = sorted(p for p in spec.folder.iterdir() if p.suffix.lower() in (".fits", ".fit", ".npy"))
    chosen = paths[math.floor(spec.first * len(paths)) : math.ceil(spec.last * len(paths))]
    if not chosen:
        raise ConfigError(f"{spec.folder} has no .fits or .npy cut-outs between first and last.")
    if spec.sha256 is not None and digest(chosen) != spec.sha256:
        raise ConfigError(f"The cut-outs in {spec.folder} are not those of the sha256 of the population.")
    return tuple(chosen)


def digest(paths: "list[Path] | tuple[Path, ...]") -> str:
    """Return a digest of the contents of the cut-outs, in their order."""
    return hashlib.sha256("".join(sha256_of(path) for path in paths).encode()).hexdigest()


def with_digest(spec: ImageLight) -> ImageLight:
    """Return the specification with the digest of its cut-outs, after reading all of them.

    Raises:
        ConfigError: If a cut-out cannot be used; the message names it.
    """
    paths = files(spec)
    for path in paths:
        galaxy(path)
    return spec.model_copy(update={"sha256": digest(paths), "folder": spec.folder.resolve()})


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # cached tensors must also serve in training
def galaxy(path: Path) -> Float[Tensor, "m m"]:
    """Return one galaxy, sky and noise removed, with a total brightness of 1.

    Raises:
        ConfigError: If the file is not a square image of finite numbers, or has no pixel above the noise of its sky.
    """
    try:
        image = read_finite_image(path).astype(np.float64)
    except InputError as error:
        raise ConfigError(str(error)) from None
    if image.shape[0] != image.shape[1] or image.shape[0] < 8:
        raise ConfigError(f"{path} is {image.shape[0]} x {image.shape[1]}; square cut-outs are needed.")
    frame = border(len(image), max(1, round(_BORDER * len(image))))
    sky = np.median(image[frame])
    noise = 1.4826 * np.median(np.abs(image[frame] - sky))
    image = np.where(image - sky > _NOISE_CUT * noise, image - sky, 0.0)
    image[frame] = 0.0  # light at the edge would be lensed to an artificial arc
    if image.sum() <= 0:
        raise ConfigError(f"{path} shows nothing above its sky.")
    return torch.from_numpy(image / image.sum())
