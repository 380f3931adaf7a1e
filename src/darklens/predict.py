"""A bundle applied to image files: a table with one row a file, bad files included."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from darklens.bundle import BATCH_SIZE, Bundle, Classified
from darklens.data.listing import find_images
from darklens.data.prepare import Prepared, prepare, require_near
from darklens.data.readers import read_image
from darklens.errors import DarklensError
from darklens.evaluation import judgement

__all__ = ["Row", "find_images", "predict", "to_csv"]


@dataclass(frozen=True)
class Row:
    """One line of predictions.csv; an error has no probabilities and a message.

    Attributes:
        path: As it was given.
        probabilities: One a class.
        message: Why there are none.
        findings: Further columns.
        changes: What was done to the image before the model saw it, in words.
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
    use: Callable[[Sequence[Path], Float[np.ndarray, "b 1 n n"], Classified], None] = lambda _, __, ___: None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """Classify image files, one row each, in their order; a bad file becomes an error row and the others go on.

    Args:
        bundle: A classifier.
        paths: Files that `read_image` reads.
        pixel_scale: Pixel scale of the images in arcsec, in place of what the files say. Images of another scale than
            the model's are resampled; where neither says one, it is taken to be the model's.
        name: Which image of files that hold several.
        use: Called with the files of each batch that could be read, their images, and what was found of them.
        advance: Called with the number of files just finished.

    Raises:
        InputError: If the bundle does not classify, or `pixel_scale` differs by more than a factor of 4 from the one it
            was trained for.
    """
    bundle.require_classifier("predict")
    if pixel_scale is not None:
        require_near(pixel_scale, bundle.contract.pixel_scale, "The images")
    rows: list[Row] = []
    for start in range(0, len(paths), BATCH_SIZE):
        block = paths[start : start + BATCH_SIZE]
        read = {path: _read(path, name, bundle, pixel_scale) for path in block}
        good = {path: image for path, image in read.items() if isinstance(image, Prepared)}
        found = _rows(bundle, good, use) if good else {}
        rows += [found.get(path) or Row(str(path), message=str(read[path]), findings={"changes": ""}) for path in block]
        advance(len(block))
    return rows


def _rows(
    bundle: Bundle,
    prepared: dict[Path, Prepared],
    use: Callable[[Sequence[Path], Float[np.ndarray, "b 1 n n"], Classified], None],
) -> dict[Path, Row]:
    paths, images = list(prepared), np.stack([image.pixels for image in prepared.values()])[:, None]
    found = bundle.classify(images)
    use(paths, images, found)
    further = judgement.columns(bundle, found.probabilities, found.features) | found.findings
    return {
        path: Row(
            str(path),
            probabilities=[float(p) for p in found.probabilities[i]],
            findings={"changes": "; ".join(image.changes)} | {name: column[i] for name, column in further.items()},
            changes=image.changes,
        )
        for i, (path, image) in enumerate(prepared.items())
    }


def to_csv(rows: Sequence[Row], classes: Sequence[str], extra: dict[str, Sequence[object]] | None = None) -> str:
    """Return the text of predictions.csv, with what was found and further columns at the end."""
    found = dict.fromkeys(name for row in rows for name in row.findings)
    extra = {name: [row.findings.get(name, "") for row in rows] for name in found} | dict(extra or {})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["path", "status", "predicted", *(f"p_{name}" for name in classes), "message", *extra])
    for i, row in enumerate(rows):
        further = [column[i] for column in extra.values()]
        if row.message:
            writer.writerow([row.path, "error", "", *[""] * len(classes), row.message, *further])
        else:
            predicted = classes[int(np.argmax(row.probabilities))]
            numbers = [f"{p:.9g}" for p in row.probabilities]
            writer.writerow([row.path, "ok", predicted, *numbers, "", *further])
    return stream.getvalue()


def _read(path: Path, name: str | None, bundle: Bundle, own_scale: float | None) -> Prepared | str:
    """Return the image, or the sentence that says why there is none."""
    size, scale = bundle.contract.n_pixels, bundle.contract.pixel_scale
    try:
        image = read_image(path, name=name)
        return prepare(image, n_pixels=size, pixel_scale=scale, own_scale=own_scale, name=str(path))
    except DarklensError as error:
        return str(error)
