"""Maps of a system with a lens step or fits: k(x, y), deflection and source plane, or residuals and evidence."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydantic import ValidationError

from darklens.bundle import Bundle, Classification
from darklens.data.image_stacks import stem
from darklens.data.prepare import Prepared
from darklens.data.store import Store, prepare_folder
from darklens.errors import InputError
from darklens.files import atomic_path, printable, write_bytes
from darklens.populations.population import Field2D, Population
from darklens.report import figures
from darklens.report.html import Picture, Section, Table
from darklens.simulate.render import deflection
from darklens.simulate.truth import columns

_MIN_BRIGHTNESS = 0.2  # of the range of the image, for pixels in which the deflection is measured


class UniqueNames:
    """Unique output names for files: FILE, FOLDER-FILE if several folders have it, or with -2, -3, ... if still taken.

    Args:
        files: All files.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files_of = Counter(map(stem, files))
        self._used: set[str] = set()

    def of(self, path: Path) -> str:
        """Return the name of the outputs of a file."""
        folder = path.absolute().parent.name
        name = stem(path)
        name = f"{folder}-{name}" if folder and self._files_of[name] > 1 else name
        candidates = (name if n == 1 else f"{name}-{n}" for n in count(1))
        unused = next(candidate for candidate in candidates if candidate not in self._used)
        self._used.add(unused)
        return unused


class MapWriter:
    """Writes FILE.npz and FILE.png for each image of the batches it is called with.

    Args:
        bundle: A system with a lens step or fits.
        folder: Output folder, which must be empty.
        files: All files of the batches.

    Raises:
        InputError: If the system has no maps, or the folder is not empty.
    """

    def __init__(self, bundle: Bundle, folder: Path, files: Iterable[Path]) -> None:
        bundle.require_maps()
        prepare_folder(folder)
        self._folder = folder
        self._names = UniqueNames(files)

    def __call__(
        self, bundle: Bundle, paths: Sequence[Path], images: Sequence[Prepared], classification: Classification
    ) -> None:
        """Write the maps of a batch; `offset` is the position (x, y) of their centre in the original image, arcsec."""
        scale = bundle.map_pixel_scale
        for i, path in enumerate(paths):
            name = self._names.of(path)
            maps = {key: value[i] for key, value in classification.maps.items()}
            with atomic_path(self._folder / f"{name}.npz") as temporary:
                np.savez(temporary, **maps, pixel_scale=np.float64(scale), offset=np.array(images[i].offset))
            if classification.findings:
                fitted = {key: column[i] for key, column in classification.findings.items()}
                picture = figures.fit_maps([maps], [printable(name)], [fitted], pixel_scale=scale)
            else:
                picture = figures.lens_maps([maps], [printable(name)], pixel_scale=scale)
            write_bytes(self._folder / f"{name}.png", figures.to_png(picture))


def section(bundle: Bundle, store: Store) -> Section:
    """Return the section on the maps of one image of each class, with the true deflection of simulated images."""
    chosen = [int(np.flatnonzero(store.labels == i)[0]) for i in np.unique(store.labels)]
    if bundle.fit_settings is not None:
        return _fits_section(bundle, store, chosen)
    maps = bundle.maps(store.images(chosen))
    truth = true_deflection(bundle, store, chosen)
    panels, rows = [], []
    for i, number in enumerate(chosen):
        image_maps = {key: value[i] for key, value in maps.items()}
        name = store.classes[store.labels[number]]
        if truth is not None:
            image_maps |= {"true_x": truth[0][i], "true_y": truth[1][i]}
            bright = image_maps["image"] > _MIN_BRIGHTNESS
            error_x, error_y = (image_maps[f"alpha_{axis}"] - image_maps[f"true_{axis}"] for axis in ("x", "y"))
            error = np.hypot(error_x, error_y)[bright]
            size = np.hypot(image_maps["true_x"], image_maps["true_y"])[bright]
            rows.append([name, f"{np.sqrt((error**2).mean()):.3f}", f"{np.sqrt((size**2).mean()):.3f}"])
        panels.append(image_maps)
    names = [store.classes[store.labels[number]] for number in chosen]
    picture = figures.to_png(figures.lens_maps(panels, names, pixel_scale=bundle.map_pixel_scale))
    text = (
        "The map k(x, y) that the network predicts for an image of each class, its deflection, and the light traced "
        "back to the source plane. The network was trained to reconstruct and classify images, not on the true "
        "deflection, so its deflection may differ from the truth."
    )
    header = ["image", "predicted - true deflection, rms arcsec", "true deflection, rms arcsec"]
    if rows:
        text += f" The rms values are over pixels brighter than {_MIN_BRIGHTNESS:g} of the range of the image."
    tables = [Table(header, rows)] if rows else []
    alt = "Image, source plane, k and deflection of an image of each class."
    return Section("Lens maps", text, tables=tables, pictures=[Picture(picture, alt)])


def _fits_section(bundle: Bundle, store: Store, chosen: Sequence[int]) -> Section:
    classification = bundle.classify(store.images(chosen))
    names = [store.classes[store.labels[number]] for number in chosen]
    maps = [{key: value[i] for key, value in classification.maps.items()} for i in range(len(chosen))]
    findings = [{key: column[i] for key, column in classification.findings.items()} for i in range(len(chosen))]
    picture = figures.to_png(figures.fit_maps(maps, names, findings, pixel_scale=bundle.map_pixel_scale))
    text = (
        "An image of each class, and its residuals in units of the noise for the smooth lens alone, with one line mass "
        "(drawn on the image) and with point masses (the cross is the first). The last two maps show by how many "
        "standard deviations a point mass at each position improves the fit, without and with the line. chi2 per pixel "
        "is close to 1 for the true hypothesis."
    )
    header = ["image", *(name for name in findings[0] if name != "fit")]
    rows = [[name, *(fitted[key] for key in header[1:])] for name, fitted in zip(names, findings, strict=True)]
    alt = "Image, residuals of three hypotheses and evidence maps of an image of each class."
    return Section("Lens fits", text, tables=[Table(header, rows)], pictures=[Picture(picture, alt)])


def true_deflection(
    bundle: Bundle, store: Store, chosen: Sequence[int]
) -> tuple[Float[np.ndarray, "b m m"], Float[np.ndarray, "b m m"]] | None:
    """Return the true alpha_x and alpha_y (arcsec) on the pixels of the maps; None for images without truth."""
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
