"""What the physics of a system made of images: k(x, y), the deflection, the source plane, and the truth beside them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydantic import ValidationError

from darklens.bundle import Bundle, Classification
from darklens.data.store import Store, prepare_folder
from darklens.errors import InputError
from darklens.files import atomic_path
from darklens.populations.population import Field2D, Population
from darklens.report import figures
from darklens.report.html import Picture, Section, Table
from darklens.simulate.render import deflection
from darklens.simulate.truth import columns

_LIT = 0.2  # of an image's range: pixels in which the deflection shows


class FreeNames:
    """Gives each file's outputs a name that no other has.

    It is the file's own, FOLDER-FILE where files of several folders share it, and FILE-2, ... where that is taken too.

    Args:
        files: All files that are to have names.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files_of = Counter(path.stem for path in files)
        self._used: set[str] = set()

    def of(self, path: Path) -> str:
        """Return a name for what is made of a file."""
        folder = path.absolute().parent.name
        own = f"{folder}-{path.stem}" if folder and self._files_of[path.stem] > 1 else path.stem
        candidates = (own if n == 1 else f"{own}-{n}" for n in count(1))
        name = next(name for name in candidates if name not in self._used)
        self._used.add(name)
        return name


class MapWriter:
    """Writes FILE.npz and FILE.png for each image of the batches it is called with.

    Args:
        bundle: A system with a lens step.
        folder: Where to write; it must not hold anything.
        files: All files that are to come.

    Raises:
        InputError: If the system has no lens step, or the folder is not empty.
    """

    def __init__(self, bundle: Bundle, folder: Path, files: Iterable[Path]) -> None:
        bundle.require_maps()
        prepare_folder(folder)
        self._bundle, self._folder = bundle, folder
        self._names = FreeNames(files)

    def __call__(
        self, paths: Sequence[Path], images: Float[np.ndarray, "b 1 n n"], classification: Classification
    ) -> None:
        """Write the maps of a batch."""
        scale = self._bundle.map_pixel_scale
        for i, path in enumerate(paths):
            name = self._names.of(path)
            maps = {key: value[i] for key, value in classification.maps.items()}
            with atomic_path(self._folder / f"{name}.npz") as temporary:
                np.savez(temporary, **maps, pixel_scale=np.float64(scale))
            if classification.findings:
                fitted = {key: column[i] for key, column in classification.findings.items()}
                picture = figures.fit_maps([maps], [name], [fitted], pixel_scale=scale)
            else:
                picture = figures.lens_maps([maps], [name], pixel_scale=scale)
            with atomic_path(self._folder / f"{name}.png") as temporary:
                temporary.write_bytes(figures.to_png(picture))


def section(bundle: Bundle, store: Store) -> Section:
    """Return the maps of the first image of each class, beside the true deflection where the images are simulated."""
    chosen = [int(np.flatnonzero(store.labels == i)[0]) for i in np.unique(store.labels)]
    if bundle.fit_settings is not None:
        return _fits_section(bundle, store, chosen)
    found = bundle.maps(store.images(chosen))
    truth = true_deflection(bundle, store, chosen)
    shown, rows = [], []
    for i, number in enumerate(chosen):
        own = {key: value[i] for key, value in found.items()}
        name = store.classes[store.labels[number]]
        if truth is not None:
            own |= {"true_x": truth[0][i], "true_y": truth[1][i]}
            lit = own["image"] > _LIT
            miss = np.hypot(own["alpha_x"] - own["true_x"], own["alpha_y"] - own["true_y"])[lit]
            size = np.hypot(own["true_x"], own["true_y"])[lit]
            rows.append([name, f"{np.sqrt((miss**2).mean()):.3f}", f"{np.sqrt((size**2).mean()):.3f}"])
        shown.append(own)
    names = [store.classes[store.labels[number]] for number in chosen]
    picture = figures.to_png(figures.lens_maps(shown, names, pixel_scale=bundle.map_pixel_scale))
    text = (
        "The map k(x, y) that the system made of an image of each class, the deflection it stands for, and the light "
        "moved back to the source plane with it. It was taught to give back the image and to tell the "
        "classes apart, never the true deflection, so it need not be near it."
    )
    header = ["image", "learnt - true deflection, rms arcsec", "true deflection, rms arcsec"]
    if rows:
        text += f" The numbers are over pixels brighter than {_LIT:g} of the image's range."
    tables = [Table(header, rows)] if rows else []
    alt = "Image, source plane, k and deflection of an image of each class."
    return Section("What the physics learned", text, tables=tables, pictures=[Picture(picture, alt)])


def _fits_section(bundle: Bundle, store: Store, chosen: Sequence[int]) -> Section:
    found = bundle.classify(store.images(chosen))
    names = [store.classes[store.labels[number]] for number in chosen]
    maps = [{key: value[i] for key, value in found.maps.items()} for i in range(len(chosen))]
    findings = [{key: column[i] for key, column in found.findings.items()} for i in range(len(chosen))]
    picture = figures.to_png(figures.fit_maps(maps, names, findings, pixel_scale=bundle.map_pixel_scale))
    text = (
        "An image of each class, and what of it, in standard deviations of the noise, is left by the smooth lens "
        "alone, with one line mass (drawn on the image) and with point masses (the first is the cross). The last two "
        "pictures "
        "show for each place by how many standard deviations a point mass there would better the fit, without and with "
        "the line. chi2 is per block of pixels and close to 1 where the hypothesis is true."
    )
    header = ["image", *(name for name in findings[0] if name != "fit")]
    rows = [[name, *(own[key] for key in header[1:])] for name, own in zip(names, findings, strict=True)]
    alt = "Image, residuals of three hypotheses and evidence maps of an image of each class."
    return Section("What the fits found", text, tables=[Table(header, rows)], pictures=[Picture(picture, alt)])


def true_deflection(
    bundle: Bundle, store: Store, chosen: Sequence[int]
) -> tuple[Float[np.ndarray, "b m m"], Float[np.ndarray, "b m m"]] | None:
    """Return alpha_x and alpha_y (arcsec) that the images were simulated with, on the maps' pixels; None if unknown."""
    if store.index.population is None:
        return None
    try:
        population = Population.model_validate(store.index.population)
        truth = {name: store.truth(name)[list(chosen)] for name in columns(population)}
    except (InputError, ValidationError):  # a store of another version
        return None
    size = bundle.contract.preprocess.output_size(bundle.contract.n_pixels)
    alpha_x, alpha_y = deflection(population, truth, Field2D(n_pixels=size, pixel_scale=bundle.map_pixel_scale))
    return alpha_x.numpy(), alpha_y.numpy()
