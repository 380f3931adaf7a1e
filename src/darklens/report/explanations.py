"""Explanations of images as files: numbers beside pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from darklens.bundle import Bundle, Classification
from darklens.data.store import prepare_folder
from darklens.evaluation.explain import Explanation, Method, explain
from darklens.files import atomic_path
from darklens.fit.features import FitFeatures
from darklens.report import figures
from darklens.report.maps import MapWriter, UniqueNames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHANNEL_NAMES = {
    "image": "image",
    "residual": "smooth lens leaves",
    "line_residual": "line leaves",
    "point_residual": "points leave",
    "evidence": "evidence for a point",
    "line_evidence": "the same beside the line",
}
_TOP = 99.8  # percentile of the attributions at which colours saturate


class ExplanationWriter:
    """Writes FILE.npz and FILE.png for each image of the batches it is called with.

    Of a system with a lens step, maps/FILE.npz and .png have k(x, y) and the deflection too.

    Args:
        bundle: A classifier.
        folder: Where to write; it must not hold anything.
        files: All files that are to come.
        method: See `darklens.evaluation.explain`.
        label: The class to explain; none: the preferred one.

    Raises:
        InputError: If the folder is not empty, or the bundle does not classify.
    """

    def __init__(
        self, bundle: Bundle, folder: Path, files: Sequence[Path], *, method: Method, label: int | None = None
    ) -> None:
        bundle.require_classifier("explain")
        prepare_folder(folder)
        self._bundle, self._folder, self._method, self._label = bundle, folder, method, label
        self._names = UniqueNames(files)
        with_k = bundle.has_maps and bundle.fit_settings is None
        self._maps = MapWriter(bundle, folder / "maps", files) if with_k else None

    def __call__(
        self, paths: Sequence[Path], images: Float[np.ndarray, "b 1 n n"], classification: Classification
    ) -> None:
        """Explain a batch, one image at a time, as an explanation takes many times the memory of a prediction."""
        for i, path in enumerate(paths):
            inputs, rows = classification.inputs, slice(i, i + 1)
            features = inputs.rows(rows) if isinstance(inputs, FitFeatures) else None
            found = explain(self._bundle, images[rows], method=self._method, label=self._label, features=features)
            name = self._names.of(path)
            classes = self._bundle.contract.classes
            probabilities = classification.probabilities[i]
            with atomic_path(self._folder / f"{name}.npz") as temporary:
                arrays: dict[str, Any] = columns(found)
                np.savez(temporary, **arrays, classes=np.array(classes), probabilities=probabilities)
            label = int(found.label[0])
            title = f"{name}: {classes[label]}, probability {probabilities[label]:.3f}"
            with atomic_path(self._folder / f"{name}.png") as temporary:
                temporary.write_bytes(figures.to_png(picture(found, title)))
        if self._maps is not None:
            self._maps(paths, images, classification)


def columns(found: Explanation) -> dict[str, np.ndarray]:
    """Return the arrays of a file about the only image of an explanation; units as there."""
    return {
        "method": np.array(found.method),
        "label": found.label[0],
        "log_odds": found.log_odds[0],
        "baseline": found.baseline[0],
        "channels": np.array(found.channels),
        "inputs": found.inputs[0],
        "attribution": found.attribution[0],
        "number_names": np.array(list(found.numbers), dtype=str),
        "numbers": np.array([value[0] for value in found.numbers.values()]),
        "pixel_scale": np.float64(found.pixel_scale),
    }


def picture(found: Explanation, title: str) -> "Figure":
    """Return what the network was shown of the only image of an explanation, over what of it speaks for the class.

    Red speaks for the class and blue against it. Pixel (0, 0) is lower left; axes are in arcsec.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(found.channels)
    figure = Figure(figsize=(3.0 * max(n, 1.6) + 0.8, 6.4) if n > 1 else (7.4, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, n, squeeze=False) if n > 1 else figure.subplots(1, 2, squeeze=False).T
    half = found.inputs.shape[-1] * found.pixel_scale / 2
    extent = (-half, half, -half, half)
    top = max(float(np.percentile(np.abs(found.attribution), _TOP)), 1e-12)
    for column, (name, shown, told) in enumerate(
        zip(found.channels, found.inputs[0], found.attribution[0], strict=True)
    ):
        light = name == "image"
        most = None if light else max(5.0, float(np.abs(shown).max()))
        above, below = grid[:, column]
        above.imshow(
            np.sqrt(shown.clip(0)) if light else shown,
            cmap="magma" if light else "RdBu_r",
            vmin=None if most is None else -most,
            vmax=most,
            origin="lower",
            extent=extent,
        )
        colours = below.imshow(told, cmap="RdBu_r", vmin=-top, vmax=top, origin="lower", extent=extent)
        above.set_title(_CHANNEL_NAMES.get(name, name), fontsize=10)
        below.set_title(
            f"adds {told.sum():+.2g} to the log-odds" if n > 1 else "speaks for it (red), against it (blue)"
        )
        below.title.set_fontsize(10)
    for axes in grid.ravel():
        axes.tick_params(labelsize=9)
    figure.colorbar(colours, ax=grid[-1, :].tolist(), label="log-odds a pixel", shrink=0.9)
    rest = f"; numbers of the fits add {sum(v[0] for v in found.numbers.values()):+.2g}" if found.numbers else ""
    sums = f"log-odds {found.log_odds[0]:.2f}, of the baseline {found.baseline[0]:.2f}{rest}"
    if found.method == "integrated_gradients" and abs(found.missing[0]) > 0.01:
        sums += f"; {found.missing[0]:+.2g} not accounted for"
    figure.suptitle(f"{title}\n{found.method.replace('_', ' ')}; {sums}", fontsize=11, parse_math=False)
    figure.supxlabel("arcsec", fontsize=10)
    return figure
