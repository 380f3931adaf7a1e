"""Draw docs/images/headline.png: from an image to a verdict in one row a class, `python tools/headline.py`.

Lenses of common-test-i that the shipped model never saw: the image, its light moved back to the source plane through
the fitted smooth lens, what that lens leaves, the evidence for a point mass at each place, and the probabilities.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from darklens import Bundle, Grid, fit_macro, populations
from darklens.physics import splat
from darklens.physics.profiles import shear, sis
from darklens.physics.raytrace import source_plane
from darklens.simulate.batch import simulate_batch

OUT = Path(__file__).parents[1] / "docs" / "images" / "headline.png"
NAME, SEED, ROWS = "common-test-i", 20261125, (0, 1, 2)
PANELS = ("image", "delensed: source plane", "smooth lens leaves, sigma", "evidence for a mass, sigma")
HALF, SOURCE_HALF = 2.4, 1.2  # arcsec shown
SOURCE_PIXEL = 0.05  # arcsec
TRUE_POINTS = 1e-3  # of theta_E^2: 1e9 of 1e12 solar masses


def main() -> None:
    population = populations.get(NAME)
    images, truth = (v for v in simulate_batch(population, SEED, range(max(ROWS) + 1)))
    images, truth = images[list(ROWS)], {key: value[list(ROWS)] for key, value in truth.items()}
    bundle = Bundle.load("lens_residual")
    found = bundle.classify(images)
    source = delensed(torch.from_numpy(images))
    figure = Figure(figsize=(13, 8.4), layout="constrained")
    for i, (axes, label) in enumerate(zip(figure.subplots(len(ROWS), 5), truth["label"], strict=True)):
        shown = [images[i, 0], source[i], found.maps["residual"][i], found.maps["evidence"][i]]
        for axis, values, panel in zip(axes, shown, PANELS, strict=False):
            draw(figure, axis, values, panel, population.field.pixel_scale, bundle.map_pixel_scale)
        mark(axes[3], truth, i)
        names = list(population.class_names)
        axes[0].set_ylabel(f"truth: {names[label]}\narcsec", fontsize=11)
        verdict(axes[4], names, found.probabilities[i], {key: v[i] for key, v in found.findings.items()})
        if i == 0:
            for axis, title in zip(axes, (*PANELS, "probability"), strict=True):
                axis.set_title(title, fontsize=11)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=80)


def delensed(images: torch.Tensor) -> np.ndarray:
    """Return the light of each image where the fitted smooth lens says that it came from."""
    fit = fit_macro(images[:, 0], NAME)
    value = {name: column[:, None, None] for name, column in zip(fit.names, fit.parameters.unbind(1), strict=True)}
    n = images.shape[-1]
    x, y = Grid(n_pixels=n, pixel_scale=populations.get(NAME).field.pixel_scale).coordinates()
    smooth = [
        sis.deflection(x, y, theta_E=value["theta_E"]),
        shear.deflection(x, y, gamma1=value["gamma1"], gamma2=value["gamma2"]),
    ]
    beta_x, beta_y = source_plane(x, y, smooth)
    light = images - fit.offset[:, None, None, None]
    plane = Grid(n_pixels=n, pixel_scale=SOURCE_PIXEL)
    return splat.normalised(light, beta_x, beta_y, plane)[:, 0].numpy()


def draw(figure: Figure, axis, values: np.ndarray, panel: str, pixel_scale: float, fit_scale: float) -> None:
    light, in_source = panel in PANELS[:2], panel == PANELS[1]
    half = len(values) * (SOURCE_PIXEL if in_source else pixel_scale if light else fit_scale) / 2
    top = None if light else max(5.0, float(np.abs(values).max()))
    picture = axis.imshow(
        np.sqrt(np.clip(values, 0, None)) if light else values,
        cmap="magma" if light else "RdBu_r",
        vmin=0 if light else -top,
        vmax=top,
        origin="lower",
        extent=(-half, half, -half, half),
    )
    shown = SOURCE_HALF if in_source else HALF
    axis.set(xlim=(-shown, shown), ylim=(-shown, shown))
    axis.tick_params(labelsize=8)
    if not light:
        figure.colorbar(picture, ax=axis, shrink=0.75)


def mark(axis, truth: dict[str, np.ndarray], i: int) -> None:
    """Draw the true masses: circles for subhaloes that are heavy enough to matter, a line for a line."""
    if "point_x" in truth:
        heavy = np.sqrt(TRUE_POINTS) * truth["theta_E"][i] < truth["point_theta_E"][i]
        axis.plot(truth["point_x"][i][heavy], truth["point_y"][i][heavy], "ko", markerfacecolor="none", markersize=9)
    if truth["label"][i] == 2:
        angle, half = truth["line_angle"][i], truth["line_length"][i] / 2
        along = np.array([-half, half])
        axis.plot(truth["line_x"][i] + along * np.cos(angle), truth["line_y"][i] + along * np.sin(angle), "k-", lw=1)


def verdict(axis, names: list[str], probabilities: np.ndarray, findings: dict[str, str]) -> None:
    axis.barh(names, probabilities, color=["#4c72b0" if p == max(probabilities) else "#c8c8c8" for p in probabilities])
    axis.set(xlim=(0, 1))
    axis.invert_yaxis()
    axis.tick_params(labelsize=10)
    axis.set_box_aspect(1)
    smooth, line, points = (float(findings[f"chi2_per_pixel{part}"]) for part in ("", "_line", "_points"))
    text = f"theta_E {float(findings['theta_E']):.3f} arcsec\nchi2: smooth lens {smooth:.2f}"
    axis.set_xlabel(f"{text}\nwith line {line:.2f}, with points {points:.2f}", fontsize=9)


if __name__ == "__main__":
    main()
