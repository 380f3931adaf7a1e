"""Whether simulated images look like the real ones: distributions of image statistics, class by class and pooled.

Every statistic is computed from the stored min-max image, by the same function for real and simulated ones. Statistics
of the photon noise and of the sky need exact images; those recovered from published figures, good to one part in 256,
only enter the others. The outermost three pixels, unreliable in recovered images, are left out of all.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from darklens.data.store import Store
from darklens.errors import ConfigError
from darklens.report.figures import COLOURS
from experiments import engine
from experiments.engine import ROOT, Backend, Experiment, Work

PIXEL_SCALE = 0.05  # arcsec
MARGIN = 3  # pixels left out on each side
CORNER = 12  # pixels, side of the squares in the corners that serve as sky
SKY = 10  # counts: with it the unknown minimum of an image, 0 to 3 counts, is found
FAINTEST = 0.1  # of the peak; fainter pixels are not counted as ring
PERIOD = 180  # degrees, of a position angle
SECTORS = 48
WIGGLE_MODES = slice(5, 13)  # above what shear, source shape and source offset do to a ring
POWER_BAND = (3, 20)  # cycles across the image: larger than the pixels' noise, smaller than the ring
LEVELS = 256
NULL_DRAWS = 100_000

Images = np.ndarray  # (b, n, n)
Values = np.ndarray  # (b,)


class Config(Experiment):
    """A simulated store, and a folder of real images, from the root of the repository."""

    population: str
    backend: Backend = "eager"
    n_per_class: int
    seed: int
    images: str


def run(config: Config, work: Work) -> dict[str, Any]:
    """Measure real and simulated images and compare them."""
    folder = (ROOT / config.images).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; give the folder of real images as images=FOLDER.")
    path = engine.simulate(work, config.population, config.n_per_class, config.seed, backend=config.backend)
    store = Store(path)
    real, simulated = measure_real(folder), measure_store(store)
    return {
        "population": store.population_name,
        "seed": store.index.seed,
        "store_sha256": store.sha256,
        "n_simulated": len(store),
        "n_real": len(real.labels),
        "n_exact": int(real.exact.sum()),
        **{name: value for name, value in engine.made_by().items() if name != "version"},
        "statistics": {s.name: s.function.__doc__ for s in STATISTICS},
        "rounding_shifts": rounding_shifts(store.images(range(min(256, len(store))))[:, 0]),
        "rows": comparisons(real, simulated, store.classes),
        "distributions": distributions(real, simulated, store.classes),
    }


# From stored images to what statistics are computed on.


def crop(images: Images) -> Images:
    """Leave out the margin."""
    return images[:, MARGIN:-MARGIN, MARGIN:-MARGIN].astype(np.float64)


def corners(images: Images) -> np.ndarray:
    """Return the four corners, (b, 4, CORNER, CORNER)."""
    low, high = slice(None, CORNER), slice(-CORNER, None)
    return np.stack([images[:, y, x] for y in (low, high) for x in (low, high)], axis=1)


def sky_subtracted(images: Images) -> Images:
    """Subtract the mean of the corners."""
    return images - corners(images).mean((1, 2, 3))[:, None, None]


def ring_of(images: Images) -> Images:
    """Return the ring alone: sky subtracted, pixels fainter than FAINTEST of the peak set to 0, peak 1."""
    light = sky_subtracted(images)
    light /= light.max((1, 2), keepdims=True)
    return np.where(light > FAINTEST, light, 0)


def counts_of(images: Images) -> Images:
    """Undo the min-max scaling: pixels are whole numbers of photons over their largest, up to their smallest.

    The smallest gap between two values is one photon; the photons of the darkest pixel follow from the known sky,
    taken from the two darker corners as a wide ring can reach the others.
    """
    flat = np.sort(images.reshape(len(images), -1), axis=1)
    gaps = np.diff(flat, axis=1)
    photon = np.where(gaps > 1e-5, gaps, np.inf).min(1)
    counts = np.round(images * np.round(1 / photon)[:, None, None])
    sky = np.sort(corners(counts).mean((2, 3)), axis=1)[:, :2].mean(1)
    return counts + np.clip(np.round(SKY - sky), 0, 3)[:, None, None]


@cache
def coordinates(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y in arcsec from the image's centre, (n, n)."""
    axis = (np.arange(n) - (n - 1) / 2) * PIXEL_SCALE
    x, y = np.meshgrid(axis, axis)
    return x, y


def flux_weighted_mean(light: Images, quantity: np.ndarray) -> Values:
    """Return the flux-weighted mean of a quantity that has a value at each pixel."""
    return (light * quantity).sum((1, 2)) / light.sum((1, 2))


def second_moments(ring: Images) -> tuple[Values, Values, Values]:
    """Return the central second moments xx, yy and xy in arcsec^2."""
    x, y = coordinates(ring.shape[-1])
    mean_x, mean_y = flux_weighted_mean(ring, x), flux_weighted_mean(ring, y)
    return (
        flux_weighted_mean(ring, x * x) - mean_x**2,
        flux_weighted_mean(ring, y * y) - mean_y**2,
        flux_weighted_mean(ring, x * y) - mean_x * mean_y,
    )


# Statistics of the ring: every image has them.


def ring_radius(ring: Images) -> Values:
    """Flux-weighted mean distance from the image's centre."""
    return flux_weighted_mean(ring, np.hypot(*coordinates(ring.shape[-1])))


def ring_width(ring: Images) -> Values:
    """Flux-weighted standard deviation of the distance from the image's centre."""
    radius = np.hypot(*coordinates(ring.shape[-1]))
    return np.sqrt(np.maximum(flux_weighted_mean(ring, radius**2) - flux_weighted_mean(ring, radius) ** 2, 0))


def centroid_offset(ring: Images) -> Values:
    """Distance of the centre of light from the image's centre."""
    x, y = coordinates(ring.shape[-1])
    return np.hypot(flux_weighted_mean(ring, x), flux_weighted_mean(ring, y))


def axis_ratio(ring: Images) -> Values:
    """Minor over major axis, from second moments."""
    xx, yy, xy = second_moments(ring)
    half_sum, half_difference = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    return np.sqrt((half_sum - half_difference) / (half_sum + half_difference))


def elongation_angle(ring: Images) -> Values:
    """Direction of the major axis, degrees from x towards y in [-90, 90), from second moments."""
    xx, yy, xy = second_moments(ring)
    return (np.degrees(np.arctan2(2 * xy, xx - yy)) / 2 + 90) % PERIOD - 90


def concentration(ring: Images) -> Values:
    """5 log10(r80 / r20) of the circles about the image's centre that hold 80 and 20 % of the light."""
    radius = np.hypot(*coordinates(ring.shape[-1])).ravel()
    order = np.argsort(radius)
    share = np.cumsum(ring.reshape(len(ring), -1)[:, order], axis=1)
    share /= share[:, -1:]
    r20, r80 = (radius[order][(share < part).sum(1)] for part in (0.2, 0.8))
    return 5 * np.log10(r80 / r20)


def effective_area(ring: Images) -> Values:
    """Total flux over peak: the area that the ring would cover at its peak brightness."""
    return ring.sum((1, 2)) / ring.max((1, 2)) * PIXEL_SCALE**2


def asymmetry(ring: Images) -> Values:
    """Share of the light that moves when the image is turned by 180 degrees."""
    return np.abs(ring - ring[:, ::-1, ::-1]).sum((1, 2)) / (2 * ring.sum((1, 2)))


def ring_wiggle(ring: Images) -> Values:
    """Rms of the ring's mean radius along the azimuth in Fourier modes 5 to 12, where substructure shows."""
    x, y = coordinates(ring.shape[-1])
    radius = np.hypot(x, y).ravel()
    sector = ((np.arctan2(y, x).ravel() / (2 * np.pi) + 0.5) * SECTORS).astype(int) % SECTORS
    within = np.eye(SECTORS)[sector]
    flat = ring.reshape(len(ring), -1)
    light, moment = flat @ within, (flat * radius) @ within
    radii = np.where(light > 0, moment / np.where(light > 0, light, 1), ring_radius(ring)[:, None])
    modes = np.fft.rfft(radii, axis=1)[:, WIGGLE_MODES] / SECTORS
    return np.sqrt(2 * (np.abs(modes) ** 2).sum(1))


# Statistics of the whole image, which neither the scale nor the level of the stored values changes.


def power_slope(images: Images) -> Values:
    """Slope of log azimuthally averaged power against log frequency, between POWER_BAND cycles across the image."""
    n = images.shape[-1]
    power = np.abs(np.fft.rfft2(images)) ** 2
    frequency = np.round(np.hypot(np.fft.fftfreq(n, 1 / n)[:, None], np.fft.rfftfreq(n, 1 / n)))
    band = np.arange(POWER_BAND[0], POWER_BAND[1] + 1)
    log_power = np.log([power[:, frequency == k].mean(1) for k in band])
    return np.polyfit(np.log(band), log_power, 1)[0]


# Statistics of the photon counts: exact images only.


def peak_counts(counts: Images) -> Values:
    """Photons in the brightest pixel."""
    return counts.max((1, 2))


def total_counts(counts: Images) -> Values:
    """Photons above the sky."""
    return sky_subtracted(counts).sum((1, 2))


def sky_mean(counts: Images) -> Values:
    """Mean of the two darker corners."""
    return np.sort(corners(counts).mean((2, 3)), axis=1)[:, :2].mean(1)


def sky_variance(counts: Images) -> Values:
    """Variance within the corners, divided by their mean: 1 for photon noise."""
    sky = corners(counts)
    return (sky.var((2, 3), ddof=1) / sky.mean((2, 3))).mean(1)


def sky_correlation(counts: Images) -> Values:
    """Correlation of horizontally and vertically neighbouring pixels within the corners."""
    sky = corners(counts)
    sky = sky - sky.mean((2, 3), keepdims=True)
    products = (sky[..., 1:, :] * sky[..., :-1, :]).mean((1, 2, 3)) + (sky[..., 1:] * sky[..., :-1]).mean((1, 2, 3))
    return products / 2 / (sky**2).mean((1, 2, 3))


def white_power(counts: Images) -> Values:
    """Power beyond 0.4 cycles per pixel, where the PSF leaves no signal, over the mean counts: 1 for photon noise."""
    n = counts.shape[-1]
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    power = np.abs(np.fft.rfft2(counts)) ** 2 / n**2
    return power[:, frequency > 0.4].mean(1) / counts.mean((1, 2))


def signal_to_noise(counts: Images) -> Values:
    """Photons of the ring over the root of all photons in its pixels."""
    inside = ring_of(counts) > 0
    return (sky_subtracted(counts) * inside).sum((1, 2)) / np.sqrt((counts * inside).sum((1, 2)))


def distinct_values(counts: Images) -> Values:
    """Number of different pixel values."""
    flat = np.sort(counts.reshape(len(counts), -1), axis=1)
    return 1.0 + (np.diff(flat, axis=1) > 0).sum(1)


@dataclass(frozen=True)
class Statistic:
    """A function of prepared images, its unit and its kind."""

    function: Callable[[Images], Values]
    of: Literal["ring", "image", "counts"]
    unit: str = ""
    circular: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def exact_only(self) -> bool:
        return self.of == "counts"

    @property
    def title(self) -> str:
        return self.name.replace("_", " ") + (f" ({self.unit})" if self.unit else "")


STATISTICS = [
    Statistic(ring_radius, "ring", "arcsec"),
    Statistic(ring_width, "ring", "arcsec"),
    Statistic(centroid_offset, "ring", "arcsec"),
    Statistic(axis_ratio, "ring"),
    Statistic(elongation_angle, "ring", "degrees", circular=True),
    Statistic(concentration, "ring"),
    Statistic(effective_area, "ring", "arcsec²"),
    Statistic(asymmetry, "ring"),
    Statistic(ring_wiggle, "ring", "arcsec"),
    Statistic(power_slope, "image"),
    Statistic(peak_counts, "counts"),
    Statistic(total_counts, "counts"),
    Statistic(sky_mean, "counts"),
    Statistic(sky_variance, "counts", "per mean"),
    Statistic(sky_correlation, "counts"),
    Statistic(white_power, "counts", "per mean"),
    Statistic(signal_to_noise, "counts"),
    Statistic(distinct_values, "counts"),
]
PREPARE: dict[str, Callable[[Images], Images]] = {"ring": ring_of, "image": lambda images: images, "counts": counts_of}


def measure(images: Images, statistics: list[Statistic] = STATISTICS) -> dict[str, Values]:
    """Return all statistics of stored images (b, n, n)."""
    inner = crop(images)
    prepared = {kind: PREPARE[kind](inner) for kind in {s.of for s in statistics}}
    return {s.name: s.function(prepared[s.of]) for s in statistics}


# Tests of the real sample against the distribution of the simulated one, which is so much larger.


def positions(real: Values, simulated: Values) -> Values:
    """Return where the real values fall in the simulated distribution: uniform in (0, 1) if both are the same."""
    ordered = np.sort(simulated)
    below, up_to = np.searchsorted(ordered, real, side="left"), np.searchsorted(ordered, real, side="right")
    return ((below + up_to) / 2 + 0.5) / (len(ordered) + 1)


def anderson_darling(u: np.ndarray) -> np.ndarray:
    """Return A^2 of samples (..., n) against the uniform distribution."""
    u = np.sort(u, axis=-1)
    n = u.shape[-1]
    weights = (2 * np.arange(1, n + 1) - 1) / n
    return -n - (weights * (np.log(u) + np.log1p(-u[..., ::-1]))).sum(-1)


def kuiper(u: np.ndarray) -> np.ndarray:
    """Return Kuiper's V, which does not depend on where the circle is cut, of samples (..., n)."""
    u = np.sort(u, axis=-1)
    n = u.shape[-1]
    return (np.arange(1, n + 1) / n - u).max(-1) + (u - np.arange(n) / n).max(-1)


def watson(u: np.ndarray) -> np.ndarray:
    """Return Watson's U^2, a circular relative of Anderson and Darling's A^2, of samples (..., n)."""
    u = np.sort(u, axis=-1)
    n = u.shape[-1]
    squares = ((u - (2 * np.arange(1, n + 1) - 1) / (2 * n)) ** 2).sum(-1)
    return squares + 1 / (12 * n) - n * (u.mean(-1) - 0.5) ** 2


@cache
def null_of(statistic: Callable[[np.ndarray], np.ndarray], n: int) -> np.ndarray:
    """Return NULL_DRAWS values of a statistic for n uniform values."""
    g = np.random.default_rng(0)
    return np.concatenate([statistic(g.random((NULL_DRAWS // 20, n))) for _ in range(20)])


def tail_probability(statistic: Callable[[np.ndarray], np.ndarray], u: np.ndarray, n_simulated: int) -> float:
    """Return the Monte Carlo p-value of a statistic for positions `u`.

    The simulated sample's own scatter makes a quadratic statistic larger by 1 + n / n_simulated, and Kuiper's by its
    root.
    """
    excess = 1 + len(u) / n_simulated
    value = statistic(u) / (excess**0.5 if statistic is kuiper else excess)
    return float((1 + (null_of(statistic, len(u)) >= value).sum()) / (1 + NULL_DRAWS))


def holm(p: list[float]) -> list[float]:
    """Return p-values with Holm's correction for multiple tests."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p)[order])
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1)
    return corrected.tolist()


def quantiles(values: Values) -> list[float]:
    """Return median, 16th and 84th percentile."""
    return [float(q) for q in np.quantile(values, (0.5, 0.16, 0.84))]


def compare(statistic: Statistic, group: str, real: Values, simulated: Values) -> dict:
    """Return one row of the table."""
    u = positions(real, simulated)
    if statistic.circular:
        first = ("Kuiper", float(kuiper(u)), tail_probability(kuiper, u, len(simulated)))
        second = ("Watson", float(watson(u)), tail_probability(watson, u, len(simulated)))
    else:
        ks = stats.ks_2samp(real, simulated)
        first = ("Kolmogorov-Smirnov", float(ks.statistic), float(ks.pvalue))
        second = ("Anderson-Darling", float(anderson_darling(u)), tail_probability(anderson_darling, u, len(simulated)))
    row: dict[str, Any] = {"statistic": statistic.name, "unit": statistic.unit, "class": group}
    row |= {"exact_only": statistic.exact_only, "n_real": len(real), "n_simulated": len(simulated)}
    row |= {"real": quantiles(real), "simulated": quantiles(simulated)}
    for key, (test, value, p) in (("supremum_test", first), ("quadratic_test", second)):
        row[key] = {"name": test, "value": value, "p": p}
    return row


def comparisons(real: "Sample", simulated: "Sample", classes: list[str]) -> list[dict]:
    """Return all rows: each statistic by class and pooled, those of the few exact images only pooled."""
    rows = []
    for statistic in STATISTICS:
        use = real.exact if statistic.exact_only else np.ones_like(real.exact)
        groups = [] if statistic.exact_only else list(enumerate(classes))
        for label, name in [*groups, (None, "pooled")]:
            in_class = [np.ones_like(s.exact) if label is None else s.labels == label for s in (real, simulated)]
            ours, simulations = (sample.values[statistic.name] for sample in (real, simulated))
            rows.append(compare(statistic, name, ours[in_class[0] & use], simulations[in_class[1]]))
    for key in ("supremum_test", "quadratic_test"):
        for row, p in zip(rows, holm([row[key]["p"] for row in rows]), strict=True):
            row[key]["p_holm"] = p
    return rows


# Samples.


@dataclass(frozen=True)
class Sample:
    """Statistics of a set of images, their labels, and which images are exact."""

    values: dict[str, Values]
    labels: np.ndarray
    exact: np.ndarray


def measure_real(folder: Path) -> Sample:
    """Measure the images that provenance.csv lists; only exact ones have statistics of counts, others NaN."""
    rows = list(csv.DictReader((folder / "provenance.csv").read_text(encoding="utf-8").splitlines()))
    images = np.stack([np.load(folder / row["file"], allow_pickle=False).squeeze() for row in rows])
    exact = np.array([row["kind"] == "exact" for row in rows])
    values = measure(images, [s for s in STATISTICS if not s.exact_only])
    for name, of_exact in measure(images[exact], [s for s in STATISTICS if s.exact_only]).items():
        values[name] = np.full(len(rows), np.nan)
        values[name][exact] = of_exact
    return Sample(values, np.array([int(row["label"]) for row in rows]), exact)


def measure_store(store: Store) -> Sample:
    """Measure all images of a store, holding one shard of them in memory."""
    starts = np.cumsum([0, *(shard.n for shard in store.index.shards)])
    parts = [measure(store.images(range(a, b))[:, 0]) for a, b in pairwise(starts)]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Sample(values, store.labels, np.ones(len(store), dtype=bool))


def rounding_shifts(images: Images) -> dict[str, float]:
    """Return how far rounding to 256 levels moves each statistic: median shift over half the 16-84 % range.

    It shows which statistics the recovered images can be used for.
    """
    rounded = (np.floor(images * LEVELS).clip(max=LEVELS - 1) + 0.5) / LEVELS
    usable = [s for s in STATISTICS if not s.exact_only]
    before, after = measure(images, usable), measure(rounded, usable)
    shifts = {}
    for name, values in before.items():
        _, low, high = quantiles(values)
        shifts[name] = float(np.median(np.abs(after[name] - values)) / ((high - low) / 2))
    return shifts


def distributions(real: Sample, simulated: Sample, classes: list[str]) -> dict[str, Any]:
    """Return for each statistic what the figure draws: histograms of both samples and the real values by class."""
    panels = {}
    for statistic in STATISTICS:
        usable = np.isfinite(real.values[statistic.name])
        ours, labels = real.values[statistic.name][usable], real.labels[usable]
        simulations = simulated.values[statistic.name]
        low, high = np.quantile(simulations, (0.002, 0.998))
        if statistic.circular:  # nearly round images have any angle; the view is the peak
            low, high = np.quantile(np.concatenate([simulations, ours]), (0.02, 0.98))
        else:
            low, high = min(low, ours.min()), max(high, ours.max())
        fine, coarse = np.linspace(low, high, 41), np.linspace(low, high, 13 if len(ours) > 20 else 8)
        panels[statistic.name] = {
            "range": [float(low), float(high)],
            "real": {name: ours[labels == i].tolist() for i, name in enumerate(classes)},
            "real_density": np.histogram(ours, coarse, density=True)[0].tolist(),
            "simulated_density": {
                name: np.histogram(simulations[simulated.labels == i], fine, density=True)[0].tolist()
                for i, name in enumerate(classes)
            },
        }
    return panels


# Output.


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of tests, and how far rounding moves the statistics."""
    table = [
        ["statistic", "class", "n", "real", "simulated", "p (KS, Kuiper)", "p (AD, Watson)", "Holm (KS)", "Holm (AD)"]
    ]
    for row in result["rows"]:
        tests = row["supremum_test"], row["quadratic_test"]
        title = row["statistic"].replace("_", " ") + (f" ({row['unit']})" if row["unit"] else "")
        cells = [title, row["class"], str(row["n_real"]), spread(row["real"]), spread(row["simulated"])]
        cells += [probability(t["p"]) for t in tests]
        cells += [f"**{probability(t['p_holm'])}**" if t["p_holm"] < 0.05 else f"{t['p_holm']:.2f}" for t in tests]
        table.append(cells)
    shifts = ", ".join(f"{name.replace('_', ' ')} {v:.2f}" for name, v in result["rounding_shifts"].items())
    values = {**result, "store": result["store_sha256"][:12], "n_rows": len(result["rows"])}
    text = engine.page(config, values, table)
    return f"{text}\nShift by rounding to 256 levels, in units of half the 16-84 % range: {shifts}.\n"


def spread(values: list[float]) -> str:
    digits = max(0, 2 - int(np.floor(np.log10(max(values[2] - values[1], 1e-9)))))
    median, low, high = (f"{value:.{min(digits, 4)}f}" for value in values)
    return f"{median} ({low} to {high})"


def probability(p: float) -> str:
    return f"{p:.3f}" if p >= 1e-3 else f"{p:.0e}"


def figure(config: Config, result: dict[str, Any]) -> Figure | None:
    """Draw a panel for each statistic: simulated as lines and real ones as ticks by class, all real ones as steps."""
    if "distributions" not in result:
        return None
    n_columns = 4
    n_rows = -(-len(STATISTICS) // n_columns)
    drawing = Figure(figsize=(3.6 * n_columns, 2.5 * n_rows), layout="constrained")
    panels = drawing.subplots(n_rows, n_columns).ravel()
    for axes, statistic in zip(panels, STATISTICS, strict=False):
        draw(axes, statistic, result["distributions"][statistic.name])
    for axes in panels[len(STATISTICS) :]:
        axes.axis("off")
    handles, names = panels[0].get_legend_handles_labels()
    drawing.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return drawing


def draw(axes: Axes, statistic: Statistic, panel: dict[str, Any]) -> None:
    low, high = panel["range"]
    densities = panel["simulated_density"]
    for colour, (name, density) in zip(COLOURS, densities.items(), strict=False):
        edges = np.linspace(low, high, len(density) + 1)
        axes.stairs(density, edges, color=colour, linewidth=1.2, label=f"simulated {name}")
        axes.stairs(density, edges, color=colour, fill=True, alpha=0.12)
    density = panel["real_density"]
    axes.stairs(
        density, np.linspace(low, high, len(density) + 1), color="black", linewidth=1.5, label="real, all classes"
    )
    tallest = max(max(values) for values in (density, *densities.values()))
    for i, (name, values) in enumerate(panel["real"].items()):
        style = {"color": COLOURS[i], "markersize": 6, "markeredgewidth": 1.2, "label": f"real {name}"}
        axes.plot(values, np.full(len(values), -tallest * 0.07 * (i + 1)), "|", **style)
    axes.axhline(0, color="0.7", linewidth=0.6)
    axes.set(yticks=[], xlim=(low, high), ylim=(-0.28 * tallest, 1.08 * tallest))
    n_exact = sum(map(len, panel["real"].values()))
    axes.set_xlabel(statistic.title + (f", {n_exact} exact" if statistic.exact_only else ""), fontsize=9)
    axes.tick_params(labelsize=8)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
