"""A bundle applied to image files: a table with one row a file, bad files included."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from darklens.bundle import BATCH_SIZE, Bundle, Classified
from darklens.data.images import read_npy
from darklens.errors import DarklensError, InputError
from darklens.evaluation import judgement


@dataclass(frozen=True)
class Row:
    """One line of predictions.csv; an error has no probabilities and a message."""

    path: str
    probabilities: list[float] = field(default_factory=list)
    message: str = ""
    findings: dict[str, str] = field(default_factory=dict)


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Return the files that the arguments name; a folder stands for the .npy files in it and below.

    Raises:
        InputError: If an argument does not exist or a folder holds no .npy file.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            inside = sorted(path for path in argument.rglob("*.npy") if path.is_file())
            if not inside:
                raise InputError(f"{argument} holds no .npy images.")
            found += inside
        else:
            found.append(argument)
    if not any(path.exists() for path in found):
        raise InputError(f"{found[0] if found else 'The list of files'}: there is no such file or folder.")
    return found


def predict(
    bundle: Bundle,
    paths: Sequence[Path],
    *,
    pixel_scale: float | None = None,
    use: Callable[[Sequence[Path], Float[np.ndarray, "b 1 n n"], Classified], None] = lambda _, __, ___: None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """Classify image files, one row each, in their order; a bad file becomes an error row and the others go on.

    Args:
        bundle: A classifier.
        paths: `.npy` files.
        pixel_scale: Pixel scale of the images in arcsec, if known; it must be the model's.
        use: Called with the files of each batch that could be read, their images, and what was found of them.
        advance: Called with the number of files just finished.

    Raises:
        InputError: If the bundle does not classify, or `pixel_scale` is not the one it was trained for.
    """
    bundle.require_classifier("predict")
    expected = bundle.contract.pixel_scale
    if pixel_scale is not None and abs(pixel_scale / expected - 1) > 0.02:
        raise InputError(
            f"The images have pixels of {pixel_scale} arcsec, the model takes {expected} arcsec; resample them first."
        )
    rows: list[Row] = []
    for start in range(0, len(paths), BATCH_SIZE):
        block = paths[start : start + BATCH_SIZE]
        read = [_read(path, bundle.contract.n_pixels) for path in block]
        good = [(path, image) for path, image in zip(block, read, strict=True) if isinstance(image, np.ndarray)]
        images = np.stack([image for _, image in good])[:, None] if good else None
        found = {} if images is None else _rows(bundle, [path for path, _ in good], images, use)
        rows += [
            found[path] if path in found and not isinstance(image, str) else Row(str(path), message=str(image))
            for path, image in zip(block, read, strict=True)
        ]
        advance(len(block))
    return rows


def _rows(
    bundle: Bundle,
    paths: list[Path],
    images: Float[np.ndarray, "b 1 n n"],
    use: Callable[[Sequence[Path], Float[np.ndarray, "b 1 n n"], Classified], None],
) -> dict[Path, Row]:
    found = bundle.classify(images)
    use(paths, images, found)
    further = judgement.columns(bundle, found.probabilities, found.features) | found.findings
    return {
        path: Row(
            str(path),
            probabilities=[float(p) for p in found.probabilities[i]],
            findings={name: column[i] for name, column in further.items()},
        )
        for i, path in enumerate(paths)
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


def _read(path: Path, n_pixels: int) -> np.ndarray | str:
    """Return the image, or the sentence that says why there is none."""
    try:
        image = read_npy(path)
    except DarklensError as error:
        return str(error)
    if image.shape != (n_pixels, n_pixels):
        return f"{path}: has {image.shape[0]} x {image.shape[1]} pixels; the model takes {n_pixels} x {n_pixels}."
    return image
