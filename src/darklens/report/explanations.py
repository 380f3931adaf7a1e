"""Explanations of images as files: arrays and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darklens.bundle import Bundle, Classification
from darklens.data.prepare import Prepared
from darklens.data.store import prepare_folder
from darklens.evaluation.explain import Explanation, Method, explain
from darklens.files import atomic_path, printable, write_bytes
from darklens.fit.features import FitFeatures
from darklens.report import figures
from darklens.report.maps import MapWriter, UniqueNames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "image": "image",
    "residual": "residual, smooth",
    "line_residual": "residual, line",
    "point_residual": "residual, points",
    "evidence": "evidence for a point",
    "line_evidence": "point, given the line",
}
_TOP = 99.8  # percentile of the attributions at which colours saturate


class ExplanationWriter:
    """Writes FILE.npz and FILE.png for each image of the batches it is called with.

    For a system with a lens step, maps/FILE.npz and maps/FILE.png have k(x, y) and the deflection.

    Args:
        bundle: A classifier.
        folder: Output folder, which must be empty.
        files: All files of the batches.
        method: See `darklens.evaluation.explain`.
        label: The class to explain; by default the predicted class.

    Raises:
        InputError: If the folder is not empty, or the bundle does not classify.
    """

    def __init__(
        self, bundle: Bundle, folder: Path, files: Sequence[Path], *, method: Method, label: int | None = None
    ) -> None:
        bundle.require_classifier("explain")
        prepare_folder(folder)
        self._folder, self._method, self._label = folder, method, label
        self._names = UniqueNames(files)
        with_k = bundle.has_maps and bundle.fit_settings is None
        self._maps = MapWriter(bundle, folder / "maps", files) if with_k else None

    def __call__(
        self, bundle: Bundle, paths: Sequence[Path], images: Sequence[Prepared], classification: Classification
    ) -> None:
        """Explain a batch one image at a time, because an explanation needs many times the memory of a prediction."""
        for i, path in enumerate(paths):
            inputs, rows = classification.inputs, slice(i, i + 1)
            features = inputs.rows(rows) if isinstance(inputs, FitFeatures) else None
            pixels = images[i].pixels[None, None]
            explanation = explain(bundle, pixels, method=self._method, label=self._label, features=features)
            name = self._names.of(path)
            classes = bundle.contract.classes
            probabilities = classification.probabilities[i]
            with atomic_path(self._folder / f"{name}.npz") as temporary:
                arrays: dict[str, Any] = columns(explanation)
                np.savez(
                    temporary,
                    **arrays,
                    classes=np.array(classes),
                    probabilities=probabilities,
                    offset=np.array(images[i].offset),
                )
            label = int(explanation.label[0])
            title = f"{printable(name)}: {classes[label]}, probability {probabilities[label]:.3f}"
            write_bytes(self._folder / f"{name}.png", figures.to_png(picture(explanation, title)))
        if self._maps is not None:
            self._maps(bundle, paths, images, classification)


def columns(explanation: Explanation) -> dict[str, np.ndarray]:
    """Return the arrays of the npz file on the single image of an explanation, in the units of `Explanation`."""
    return {
        "method": np.array(explanation.method),
        "label": explanation.label[0],
        "log_odds": explanation.log_odds[0],
        "baseline": explanation.baseline[0],
        "map_names": np.array(explanation.map_names),
        "inputs": explanation.inputs[0],
        "attribution": explanation.attribution[0],
        "summary_names": np.array(list(explanation.summary), dtype=str),
        "summary_attribution": np.array([value[0] for value in explanation.summary.values()]),
        "pixel_scale": np.float64(explanation.pixel_scale),
    }


def picture(explanation: Explanation, title: str) -> "Figure":
    """Return the input maps of the single image of an explanation, above their attributions.

    Red pixels increase the log-odds of the class, blue ones decrease it. Pixel (0, 0) is lower left; axes in arcsec.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(explanation.map_names)
    figure = Figure(figsize=(3.0 * max(n, 1.6) + 0.8, 6.4) if n > 1 else (7.4, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, n, squeeze=False) if n > 1 else figure.subplots(1, 2, squeeze=False).T
    scale = explanation.pixel_scale
    top = max(float(np.percentile(np.abs(explanation.attribution), _TOP)), 1e-12)
    panels = zip(grid.T, explanation.map_names, explanation.inputs[0], explanation.attribution[0], strict=True)
    for (upper, lower), name, values, attribution in panels:
        is_light = name == "image"
        limit = None if is_light else max(5.0, float(np.abs(values).max()))
        figures.show(
            upper,
            np.sqrt(values.clip(0)) if is_light else values,
            scale,
            cmap="magma" if is_light else "RdBu_r",
            vmin=None if limit is None else -limit,
            vmax=limit,
        )
        colours = figures.show(lower, attribution, scale, cmap="RdBu_r", vmin=-top, vmax=top)
        upper.set_title(_TITLES.get(name, name), fontsize=10)
        lower.set_title(f"adds {attribution.sum():+.2g} to the log-odds" if n > 1 else "attribution", fontsize=10)
    for axes in grid.ravel():
        axes.tick_params(labelsize=9)
    figure.colorbar(colours, ax=grid[-1, :].tolist(), label="log-odds per pixel", shrink=0.9)
    figure.suptitle(f"{title}\n{_sums(explanation)}", fontsize=11, parse_math=False)
    figure.supxlabel("arcsec", fontsize=10)
    return figure


def _sums(explanation: Explanation) -> str:
    method = explanation.method.replace("_", " ")
    text = f"{method}; log-odds {explanation.log_odds[0]:.2f}, baseline {explanation.baseline[0]:.2f}"
    if explanation.summary:
        text += f"; summary of the fits adds {sum(value[0] for value in explanation.summary.values()):+.2g}"
    if explanation.method == "integrated_gradients" and abs(explanation.unexplained[0]) > 0.01:
        text += f"; {explanation.unexplained[0]:+.2g} not accounted for"
    return text
