"""A trained model on images that differ from those of its population: other lenses, other files, no lenses.

`shifts` evaluates its classes, `ood` its out-of-distribution score.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from darklens import populations, rng
from darklens.bundle import BATCH_SIZE, Bundle, classify
from darklens.config import Frozen
from darklens.evaluation.columns import prediction_columns
from darklens.populations.population import PoissonNoise, Population
from darklens.simulate.batch import simulate_batch
from darklens.simulate.render import render
from darklens.simulate.truth import draw, label_of
from experiments import composed, contaminants
from experiments.engine import ROOT, Experiment, Overrides

REAL_DATA = ROOT.parent / "shared" / "realdata"
HST = REAL_DATA / "hst-lenses"
SLACS = REAL_DATA / "slacs"
FOLDERS = {"HST": HST, "SLACS": SLACS}
PEAK = 800  # counts of the brightest pixel of a scaled image of common-test-i, about
SKY = 10  # counts per pixel

Images = Float[np.ndarray, "b 1 n n"]


class Labelled(NamedTuple):
    """Images of any linear scale, labels -1 where there are none, and the exposure map of fluxes."""

    images: Images
    labels: Int[np.ndarray, " b"]
    exposure: Float[np.ndarray, "b n n"] | None = None


class ImageSet(Frozen):
    """One set of test images.

    Attributes:
        population: Simulated, with `overrides`; default: that of the experiment.
        label: Only images of this class.
        change: How the simulated images are changed.
        contaminant: A contaminant that is added, of `contaminants.CONTAMINANTS`.
        source: What takes the place of a simulation.
        composed: A smooth scene that takes the place of a simulation, of `composed.SCENES`.
        is_lens: Whether the scene is a lens, so that its class is known.
    """

    population: str = ""
    overrides: Overrides = []
    label: int | None = None
    change: Literal["none", "8 bits", "sub-count noise", "float32 flux", "rotated", "shuffled pixels"] = "none"
    contaminant: str = ""
    source: Literal["simulation", "flux with exposure map", "white noise", "blank sky", "HST", "SLACS"] = "simulation"
    composed: str = ""
    is_lens: bool = True

    def make(self, default: str, seed: int, n: int) -> Labelled:
        """Return n images, as large as the population's."""
        counts = ["stored=counts"] if self.contaminant else []
        population = populations.get(self.population or default, [*self.overrides, *counts])
        if self.composed:
            images = composed.images_of(self.composed, seed, n, population)
            return Labelled(images, np.full(n, 0 if self.is_lens else -1))
        if self.source == "flux with exposure map":
            return with_exposure_map(population, seed, n)
        if self.source != "simulation":
            images = OTHERS[self.source](seed, n, population)
            return Labelled(images, np.full(len(images), -1))
        rows = range(n) if self.label is None else range(self.label, 3 * n, 3)
        images, truth = simulate_batch(population, seed, rows)
        if self.contaminant:
            images = contaminants.contaminate(images, self.contaminant, seed)
        return Labelled(CHANGES[self.change](images, seed), truth["label"].astype(np.int64))


class Config(Experiment):
    """A model (run, bundle or name) and n images of each set; `only` chooses sets."""

    model: str
    population: str
    n: int
    seed: int
    sets: dict[str, ImageSet]
    only: list[str] = []

    def make(self, name: str) -> Labelled:
        """Return the images of a set."""
        return self.sets[name].make(self.population, self.seed, self.n)

    def names(self) -> list[str]:
        """Return the names of all sets that are available."""
        return self.only or [
            name for name, made in self.sets.items() if made.source not in FOLDERS or FOLDERS[made.source].is_dir()
        ]


def in_batches(bundle: Bundle, images: Images) -> list[Any]:
    """Return what the model says of images, a batch at a time."""
    return [bundle.classify(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]


class Classified(NamedTuple):
    """Images classified by a model or its fallback.

    Attributes:
        probabilities: Of each class.
        by_fallback: Whether the fallback classified an image.
        unknown: Whether the verdict is `unknown`.
        sets: 90 % prediction sets, as whether each class is in it.
    """

    probabilities: Float[np.ndarray, "b c"]
    by_fallback: Bool[np.ndarray, " b"]
    unknown: Bool[np.ndarray, " b"]
    sets: Bool[np.ndarray, "b c"]


def with_fallback(bundle: Bundle, images: Images) -> Classified:
    """Classify images as `darklens predict` does."""
    classes, n = bundle.contract.classes, len(images)
    probabilities, sets = np.zeros((n, len(classes))), np.zeros((n, len(classes)), dtype=bool)
    by_fallback, unknown = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    for start in range(0, n, BATCH_SIZE):
        for part in classify(bundle, images[start : start + BATCH_SIZE]):
            result, rows = part.classification, np.array(part.indices) + start
            columns = prediction_columns(part.bundle, result.probabilities, result.ood_features, result.doubts)
            probabilities[rows], by_fallback[rows] = result.probabilities, part.bundle is not bundle
            unknown[rows] = [bool(reasons) for reasons in result.doubts]
            sets[rows] = [[name in text.split("|") for name in classes] for text in columns["set"]]
    return Classified(probabilities, by_fallback, unknown, sets)


def sub_count_noise(images: Images, _: int) -> Images:
    """Add noise of a fifth of a count, in which no step of one count can be found."""
    noise = torch.randn(images[:, 0].shape, generator=torch.Generator().manual_seed(1))[:, None] * 0.2 / PEAK
    return (torch.from_numpy(images) + noise).numpy()


def shuffled(images: Images, seed: int) -> Images:
    """Put the pixels of each image in one random order, which keeps its histogram."""
    flat = images.reshape(*images.shape[:2], -1)
    return flat[..., rng.generator(seed, "pixels").permutation(flat.shape[-1])].reshape(images.shape)


CHANGES: dict[str, Callable[[Images, int], Images]] = {
    "none": lambda images, _: images,
    "8 bits": lambda images, _: (torch.from_numpy(images) * 255).round().div(255).numpy(),
    "sub-count noise": sub_count_noise,
    "float32 flux": lambda images, _: (3.7e-19 * torch.from_numpy(images) + 2e-20).numpy(),
    "rotated": lambda images, _: np.ascontiguousarray(np.rot90(images, axes=(2, 3))),
    "shuffled pixels": shuffled,
}


def with_exposure_map(population: Population, seed: int, n: int) -> Labelled:
    """Return fluxes: counts of an exposure that falls by 30 % across the image, divided by it; and the map."""
    truth = draw(population, seed, range(n))
    size = population.field.n_pixels
    exposure = torch.linspace(1.15, 0.85, size).expand(n, size, size).contiguous()
    assert isinstance(population.noise, PoissonNoise)
    rate = (render(population, truth) + population.noise.sky) * exposure
    flux = 3e-19 * torch.poisson(rate, generator=torch.Generator().manual_seed(2)) / exposure
    labels = np.array([label_of(population, i) for i in range(n)])
    return Labelled(flux[:, None].numpy(), labels, exposure.numpy())


def hst_lenses(seed: int, n: int, population: Population) -> Images:
    """Return real cut-outs, resampled and set into noise of their background, in four quarter turns each."""
    import h5py
    from scipy.ndimage import zoom

    size, scale = population.field.n_pixels, population.field.pixel_scale
    g, canvases = rng.generator(seed, "hst"), []
    for path in sorted(HST.glob("image_*.h5")):
        with h5py.File(path) as file:
            image, rms, transform = (file[k][()] for k in ("image_data", "background_rms", "transform_pix2angle"))
        factor = float(np.sqrt(abs(np.linalg.det(transform)))) / scale
        image = zoom(image, factor, order=1)
        canvas = g.normal(0, rms * min(1, 1 / factor), (size, size))
        start = (size - len(image)) // 2
        canvas[start : start + len(image), start : start + len(image)] = image
        canvases += [np.rot90(canvas, turn) for turn in range(4)]
    return np.stack(canvases)[:n, None].astype(np.float32)


def slacs_lenses(seed: int, n: int, population: Population) -> Images:
    """Return the central part of HST images of SLACS lenses, whose pixels have the scale of the population."""
    from astropy.io import fits

    size, cutouts = population.field.n_pixels, []
    for path in sorted(SLACS.glob("*/image.fits")):
        image = fits.getdata(path)
        start = (len(image) - size) // 2
        cutouts.append(image[start : start + size, start : start + size])
    return np.stack(cutouts)[:n, None].astype(np.float32)


def shape(n: int, population: Population) -> tuple[int, int, int, int]:
    return n, 1, population.field.n_pixels, population.field.n_pixels


OTHERS: dict[str, Callable[[int, int, Population], Images]] = {
    "white noise": lambda seed, n, p: rng.generator(seed, "noise").normal(size=shape(n, p)).astype(np.float32),
    "blank sky": lambda seed, n, p: rng.generator(seed, "sky").poisson(SKY, shape(n, p)).astype(np.float32),
    "HST": hst_lenses,
    "SLACS": slacs_lenses,
}
