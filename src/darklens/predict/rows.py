"""Rows of predictions.csv for image files, in order, bad files included."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from darklens import aliases
from darklens.bundle import BATCH_SIZE, Bundle, Classification, InferenceBackend, Part, classify
from darklens.data.image_stacks import labels_of, location, read_row
from darklens.data.prepare import Prepared, prepare, require_similar_scale, stacked_masks
from darklens.data.readers import read_image
from darklens.errors import DarklensError
from darklens.evaluation.columns import prediction_columns
from darklens.files import csv_line
from darklens.fit.features import no_features
from darklens.fit.summary import findings
from darklens.predict.auxiliary import Auxiliary, unused_maps

OnBatch = Callable[[Bundle, Sequence[Path], Sequence[Prepared], Classification], None]
_POSITIONS = ("centre", "line", "point")  # prefixes of columns of positions, relative to the centre of the image


@dataclass(frozen=True)
class Row:
    """One row of predictions.csv; a bad file has a message and no probabilities.

    Attributes:
        path: Path as passed by the caller.
        probabilities: One for each class.
        message: Error message of a bad file.
        findings: Other columns by name. Positions are relative to the centre of the image in the file, arcsec;
            `offset_x` and `offset_y` are those of the centre of the cut-out that was classified.
        changes: Changes to the image before classification, such as resampling, in words.
    """

    path: str
    probabilities: list[float] = field(default_factory=list)
    message: str = ""
    findings: dict[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()


def predict(
    bundle: Bundle,
    paths: Sequence[Path],
    *,
    pixel_scale: float | None = None,
    name: str | None = None,
    on_batch: OnBatch = lambda _, __, ___, ____: None,
    advance: Callable[[int], None] = lambda _: None,
    backend: InferenceBackend | None = None,
    with_maps: bool = False,
    folder: Path = Path(),
    auxiliary: Auxiliary | None = None,
) -> list[Row]:
    """Classify image files, one row each, in order; a bad file becomes an error row.

    Args:
        bundle: A classifier.
        paths: Files that `read_image` reads, and images of stacks, `FILE#i`.
        pixel_scale: Pixel scale of the images in arcsec; overrides that in the files. Images with a pixel scale other
            than that of the model are resampled. If it is unknown, `assumed_scale` chooses one.
        name: Name of the image in files with several images.
        on_batch: Called with a model, the readable files of a batch that it classified, their images, and the
            classification: once for each model, `bundle` and its fallback.
        advance: Called with the number of files just finished.
        backend: Inference backend, see `backend_of`; by default the bundle itself.
        with_maps: Whether `on_batch` needs the maps of systems that predict k(x, y); maps of fits are always included.
        folder: Folder of relative paths; by default the working folder.
        auxiliary: PSF, noise map and mask of the images.

    Raises:
        InputError: If the bundle does not classify, or `pixel_scale` differs by more than a factor of 4 from that of
            its training images.
    """
    require_usable(bundle, pixel_scale)
    rows: list[Row] = []
    for start in range(0, len(paths), BATCH_SIZE):
        block = paths[start : start + BATCH_SIZE]
        doubts: dict[Path, tuple[str, ...]] = {}
        read = {
            path: read_one(
                path, bundle, pixel_scale=pixel_scale, name=name, folder=folder, auxiliary=auxiliary, doubts=doubts
            )
            for path in block
        }
        good = {path: image for path, image in read.items() if isinstance(image, Prepared)}
        by_path = _rows(bundle, good, on_batch, backend, with_maps, doubts) if good else {}
        rows += [
            by_path.get(path) or Row(str(path), message=str(read[path]), findings={"changes": ""}) for path in block
        ]
        advance(len(block))
    return rows


def require_usable(bundle: Bundle, pixel_scale: float | None) -> None:
    """Check that a bundle can classify images with a pixel scale.

    Raises:
        InputError: If it cannot.
    """
    bundle.require_classifier("predict")
    if pixel_scale is not None:
        require_similar_scale(pixel_scale, bundle.contract.pixel_scale, "The images")


def read_one(
    path: Path,
    bundle: Bundle,
    *,
    pixel_scale: float | None = None,
    name: str | None = None,
    folder: Path = Path(),
    auxiliary: Auxiliary | None = None,
    doubts: dict[Path, tuple[str, ...]] | None = None,
) -> Prepared | str:
    """Read a file and prepare its image for the bundle; return an error message if that fails.

    If PSF or noise map are not those of the bundle, the reasons to doubt its class are added to `doubts`.
    """
    size, scale, whole = bundle.contract.n_pixels, bundle.contract.pixel_scale, folder / path
    file, row = location(whole)
    try:
        if row is None:
            image = read_image(file, name=name, pixel_scale=pixel_scale)
        else:
            image = read_row(file, row, name=name, pixel_scale=pixel_scale)
        image = replace(image, changes=(*image.changes, *unused_maps(file, auxiliary)))
        if auxiliary is not None:
            image, reasons = auxiliary.applied(image, bundle)
            if doubts is not None:
                doubts[path] = reasons
        return prepare(
            image, n_pixels=size, pixel_scale=scale, image_pixel_scale=pixel_scale, name=str(path), path=file
        )
    except DarklensError as error:
        message = str(error)
        if row is None and (n := len(labels_of(file))) > 1:
            message += f" If these are {n} images, give {whole}#0 to {whole}#{n - 1}, or call the array images."
        if row is None:
            return message.replace(str(whole), str(path))
        return message if message.startswith(str(path)) else message.replace(str(file), str(path), 1)


def _rows(
    bundle: Bundle,
    prepared: dict[Path, Prepared],
    on_batch: OnBatch,
    backend: InferenceBackend | None,
    with_maps: bool,
    doubts: Mapping[Path, tuple[str, ...]],
) -> dict[Path, Row]:
    paths, cutouts = list(prepared), list(prepared.values())
    images = np.stack([image.pixels for image in cutouts])[:, None]
    mask = stacked_masks([image.mask for image in cutouts], images.shape)
    reasons = [doubts.get(path, ()) for path in paths]
    rows = {}
    for part in classify(bundle, images, backend, mask=mask, with_maps=with_maps, doubts=reasons):
        chosen, classification = [paths[i] for i in part.indices], part.classification
        on_batch(part.bundle, chosen, [prepared[path] for path in chosen], classification)
        further = prediction_columns(
            part.bundle, classification.probabilities, classification.ood_features, classification.doubts
        )
        further |= _fallback_columns(part) if bundle.contract.fallback else {}
        further |= _with_old_names(classification.findings)
        for i, path in enumerate(chosen):
            image = prepared[path]
            rows[path] = Row(
                str(path),
                probabilities=[float(p) for p in classification.probabilities[i]],
                findings={"changes": "; ".join(image.changes)}
                | {f"offset_{axis}": f"{value:.5g}" for axis, value in zip("xy", image.offset, strict=True)}
                | _in_original({name: column[i] for name, column in further.items()}, image.offset),
                changes=image.changes,
            )
    return rows


def _in_original(columns: dict[str, str], offset: tuple[float, float]) -> dict[str, str]:
    """Return the columns of an image with positions relative to the centre of the image in the file, arcsec."""
    names = {f"{prefix}_{axis}": value for prefix in _POSITIONS for axis, value in zip("xy", offset, strict=True)}
    moved = {
        name: f"{float(columns[name]) + value:.5g}" for name, value in names.items() if value and columns.get(name)
    }
    return columns | moved


def columns_of(bundle: Bundle) -> list[str]:
    """Return the names of the columns after `message` in the rows of a bundle."""
    classes = len(bundle.contract.classes)
    features = 0 if bundle.ood_reference is None else len(bundle.ood_reference.centre)
    calibration = prediction_columns(bundle, np.zeros((0, classes)), np.zeros((0, features)), [])
    fits = {} if bundle.check_settings is None else _with_old_names(findings(no_features()))
    fallback = _fallback_columns(None) if bundle.contract.fallback else {}
    return ["changes", "offset_x", "offset_y", *calibration, *fallback, *fits]


def _fallback_columns(part: Part | None) -> dict[str, list[str]]:
    """Return which model classified each image, and the reasons if it is the fallback; no rows without a part."""
    if part is None:
        return {"model": [], "fallback_reason": []}
    reasons = ["; ".join(reasons) for reasons in part.fallback_reasons]
    return {"model": [part.bundle.contract.recipe] * len(reasons), "fallback_reason": reasons}


def _with_old_names(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the columns of the fits, followed by the renamed ones under their deprecated names."""
    return columns | {old: columns[new] for old, new in aliases.PREDICTIONS.items() if new in columns}


def header(classes: Sequence[str], further: Sequence[str]) -> str:
    """Return the first line of predictions.csv."""
    return csv_line(["path", "status", "predicted", *(f"p_{name}" for name in classes), "message", *further])


def lines(rows: Sequence[Row], classes: Sequence[str], further: Sequence[Sequence[object]]) -> str:
    """Return rows as CSV lines, each followed by its values of further columns."""
    text = []
    for row, values in zip(rows, further, strict=True):
        if row.message:
            text.append(csv_line([row.path, "error", "", *[""] * len(classes), row.message, *values]))
        else:
            predicted = classes[int(np.argmax(row.probabilities))]
            numbers = [f"{p:.9g}" for p in row.probabilities]
            text.append(csv_line([row.path, "ok", predicted, *numbers, "", *values]))
    return "".join(text)


def to_csv(rows: Sequence[Row], classes: Sequence[str], extra: dict[str, Sequence[object]] | None = None) -> str:
    """Return the text of predictions.csv, with findings and extra columns at the end."""
    names = dict.fromkeys(name for row in rows for name in row.findings)
    extra = extra or {}
    values = [
        [*(row.findings.get(name, "") for name in names), *(column[i] for column in extra.values())]
        for i, row in enumerate(rows)
    ]
    return header(classes, [*names, *extra]) + lines(rows, classes, values)
