"""The commands that fit scenes to telescope images, and search for perturbers in them."""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from cyclopts import Parameter, validators

import darklens
from darklens.cli.root import PARTIAL_SUCCESS, Positive, app, check_outputs, print_error, progress
from darklens.errors import ConfigError

if TYPE_CHECKING:
    from darklens.fit.resumable_table import Computation, Row
    from darklens.scene.observation_files import Inputs
    from darklens.scene.specification import SceneSpecification

_OVERRIDE = re.compile(r"[\w+-]+(\.[\w+-]+)*=")
Files = Annotated[
    str,
    Parameter(
        help="Images (FITS, HDF5, npz, npy); folders with image.fits (or data.fits), noise_map.fits (or "
        "noise.fits), psf.fits and perhaps mask.fits; npz or HDF5 files with `images`, `noise`, `psf` and "
        "`pixel_scale`, each image one row; lists @LIST.txt. Overrides of the scene such as epl.slope=2."
    ),
]
_FILE = "FILE, or FILE[NAME] for one of its extensions; used for all images."
_LARGEST_REDSHIFT, _LARGEST_CONCENTRATION = 1100.0, 1000.0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What `fit` and `search` share."""

    model: Annotated[str, Parameter(help="Scene to fit: a name (`darklens models` lists them), or a YAML file.")] = (
        "epl-shear"
    )
    out: Annotated[Path, Parameter(help="CSV table to write.")]
    report: Annotated[
        Path | None,
        Parameter(
            help="HTML page to write: the table, and a figure of each lens (about 50 kB each), in one file that "
            "opens without a network."
        ),
    ] = None
    psf: Annotated[str | None, Parameter(help=_FILE)] = None
    noise_map: Annotated[
        str | None,
        Parameter(
            help="FILE or FILE[NAME]: standard deviation, variance or weight of each pixel, in the unit of the image."
        ),
    ] = None
    mask: Annotated[str | None, Parameter(help="FILE or FILE[NAME]: non-zero pixels are left out.")] = None
    pixel_scale: Annotated[
        float | None, Parameter(help="Pixel scale of the images, arcsec; needed if the files do not state it.")
    ] = None
    image: Annotated[
        str | None,
        Parameter(help="Array, HDF5 dataset or FITS extension (name or number) with the image, if there are several."),
    ] = None
    flip_rows: Annotated[
        bool, Parameter(negative="", help="Row 0 is at the top, as in files of PyAutoLens; for all arrays.")
    ] = False
    source_grid: Annotated[
        int | None,
        Parameter(
            help="Reconstruct the source on a grid of N x N nodes (4 to 64), after the fit of the scene; for sources "
            "with structure. 32 takes about ten seconds for a lens.",
            validator=validators.Number(gte=4, lte=64),
        ),
    ] = None
    compiled: Annotated[
        bool | None,
        Parameter(
            name="--compile",
            negative="--no-compile",
            help="Compile the scene first, in seconds, unless it is cached from an earlier run. Fits are then several "
            "times as fast. The default is to compile if there is a C++ compiler.",
        ),
    ] = None
    workers: Annotated[Positive, Parameter(help="Number of processes.")] = 1
    seed: Annotated[
        int, Parameter(help="Random seed of the starts.", validator=validators.Number(gte=-(2**63), lt=2**63))
    ] = 0


@app.command(usage="Usage: darklens fit --out PATH [OPTIONS] FILES... [KEY=VALUE...]")
def fit(
    *files: Files,
    options: Options,
    maps: Annotated[
        Path | None,
        Parameter(
            help="New folder for FILE.png and FILE.npz of each lens: data, model, residual in units of the noise, and "
            "source plane."
        ),
    ] = None,
) -> int:
    """Fit a lens model to telescope images with noise map, PSF and mask.

    The table has one row per image: theta_E (effective Einstein radius) and centre in arcsec, slope of the density,
    axis ratio q, phi of the major axis in degrees from x to y, shear, multipole amplitudes a3 and a4 (relative to
    theta_E), then the errors (standard deviations) and all parameters. `changes` lists assumptions about the files. An
    image that cannot be used gets a row with the reason (exit code 3). To continue an interrupted run, repeat the
    command.

    A pixel is left out where the mask is non-zero, or the noise is not finite, zero, or more than a factor of 1e6 from
    its median.

    Example: `darklens fit lenses/ --model epl-shear+light --pixel-scale 0.05 --out fits.csv --maps maps`

    Example: `darklens fit lens.fits --psf psf.fits --noise-map rms.fits --model sie-shear half_width=3 --out fits.csv`
    """
    from darklens.fit.scene_table import fit_computation
    from darklens.report.scene_report import fit_page

    run = _prepare(files, options, maps)
    with progress("Fitting", len(run.labels)) as advance:
        computation = fit_computation(
            run.scene,
            run.inputs,
            seed=options.seed,
            compiled=options.compiled,
            source_grid=options.source_grid,
        )
        rows = run.write(computation, fit_page, advance)
    return _print_summary(rows, "fitted", options)


@app.command(usage="Usage: darklens search --out PATH [OPTIONS] FILES... [KEY=VALUE...]")
def search(
    *files: Files,
    options: Options,
    perturber: Annotated[
        Literal["tnfw", "tnfw_free", "point", "line"],
        Parameter(
            help="Truncated NFW halo (dark subhalo) whose concentration follows from its mass (tnfw) or is free "
            "(tnfw_free), point mass, or line mass."
        ),
    ] = "tnfw",
    n_max: Annotated[
        int,
        Parameter(
            help="Maximum number of perturbers (10 at most), found one after the other.",
            validator=validators.Number(gte=1, lte=10),
        ),
    ] = 1,
    threshold: Annotated[
        float | None,
        Parameter(
            help="delta chi2 of a detection; by default 11 for tnfw (about 10 % false alarms if the model is right), "
            "15 for tnfw_free and point, 20 for line."
        ),
    ] = None,
    simulations: Annotated[
        int | None,
        Parameter(
            help="Compute the threshold of each lens, for 10 % false alarms, from this many (at least 10) simulated "
            "smooth lenses.",
            validator=validators.Number(gte=10),
        ),
    ] = None,
    z_lens: Annotated[float, Parameter(help="Redshift of lens and perturber, for masses in M_sun.")] = 0.5,
    z_source: Annotated[float, Parameter(help="Redshift of the source.")] = 1.0,
    concentration: Annotated[
        float | None, Parameter(help="c200 of tnfw haloes; by default from the mass (Dutton & Maccio 2014).")
    ] = None,
    maps: Annotated[
        Path | None,
        Parameter(
            help="New folder for FILE.png and FILE.npz of each lens: residuals, gain in chi2 at each position, and "
            "the mass that is detectable there."
        ),
    ] = None,
) -> int:
    """Search for dark perturbers in telescope images of lenses.

    Fits the smooth scene, maps by how much a perturber at each position would lower chi2, and fits scene and perturber
    together from the highest peaks. The table has one row per image: whether a perturber is detected, delta chi2,
    threshold, position in arcsec, log10 of the mass (M200 of a halo, total mass of a point or line) in M_sun with its
    error, and chi2 per pixel with and without it. No detection is claimed where the fit is bad; `message` has the
    reason. Files are those of `darklens fit`, and interrupted runs continue in the same way.

    Example: `darklens search lenses/ --model epl-shear --pixel-scale 0.05 --out search.csv --maps maps`
    """
    from darklens.fit.perturber_profiles import Redshifts
    from darklens.fit.perturber_table import SearchOptions, search_computation
    from darklens.report.scene_report import search_page

    if not 0 < z_lens < z_source < _LARGEST_REDSHIFT:
        raise ConfigError(
            f"--z-source ({z_source:g}) must be above --z-lens ({z_lens:g}), and both above zero and below "
            f"{_LARGEST_REDSHIFT:g}."
        )
    limits = {"--concentration": (concentration, _LARGEST_CONCENTRATION), "--threshold": (threshold, math.inf)}
    for name, (value, largest) in limits.items():
        if value is not None and not 0 < value < largest:
            raise ConfigError(f"{name} must be positive and below {largest:g}, got {value:g}.")
    if concentration is not None and perturber != "tnfw":
        raise ConfigError(f"--concentration is that of --perturber tnfw, not of {perturber}.")
    if threshold is not None and simulations is not None:
        raise ConfigError("--threshold and --simulations exclude each other.")
    if simulations is not None and options.source_grid is not None:
        raise ConfigError("--simulations cannot be combined with --source-grid; give a --threshold.")
    if threshold is None and options.source_grid is not None:
        raise ConfigError("--source-grid needs a --threshold in a search: the default is that of source profiles.")
    run = _prepare(files, options, maps)
    redshifts = Redshifts(z_lens, z_source, concentration)
    how = SearchOptions(
        perturber, n_max, redshifts, threshold, simulations, options.seed, options.compiled, options.source_grid
    )
    with progress("Searching", len(run.labels)) as advance:
        computation = search_computation(run.scene, run.inputs, how)
        rows = run.write(computation, lambda rows, settings: search_page(rows, how, settings), advance)
    detected = sum(row.columns.get("detected") == "yes" for row in rows)
    print(f"Perturbers detected in {detected} of {len(rows)} images.")
    return _print_summary(rows, "searched", options)


class _Run(NamedTuple):
    """The options, what the commands read, the paths of the maps without suffix, and the settings in the report."""

    options: Options
    labels: list[str]
    scene: "SceneSpecification"
    inputs: "Inputs"
    maps: dict[str, Path] | None
    settings: dict[str, str]

    def write(
        self,
        computation: "Computation",
        page: Callable[[Sequence["Row"], dict[str, str]], str],
        advance: Callable[[int], None],
    ) -> list["Row"]:
        """Write the table, its maps, and the page of the report if there is to be one; return the rows."""
        from darklens.files import write_text
        from darklens.fit.resumable_table import write_table

        out, path, workers = self.options.out, self.options.report, self.options.workers
        report = None if path is None else lambda rows: write_text(path, page(rows, self.settings))
        return write_table(
            self.labels, out, computation, maps=self.maps, workers=workers, advance=advance, report=report
        )


def _prepare(files: Sequence[str], options: Options, maps: Path | None) -> _Run:
    """Load the scene, find the observations, and check what is to be written, before any work."""
    from darklens.data.store import prepare_folder
    from darklens.fit.resumable_table import unfinished
    from darklens.scene import specification
    from darklens.scene.observation_files import Inputs
    from darklens.scene.observation_paths import files_of, find_observations

    overrides = [text for text in files if _OVERRIDE.match(text) and not os.path.exists(text)]
    arguments = [text for text in files if text not in overrides]
    if not arguments:
        raise ConfigError("Name the images or folders to fit, such as `darklens fit lens.fits --out fits.csv`.")
    scene = specification.get(options.model, overrides)
    inputs = Inputs(
        psf=options.psf,
        noise_map=options.noise_map,
        mask=options.mask,
        pixel_scale=options.pixel_scale,
        image=options.image,
        flip_rows=options.flip_rows,
        psf_settings=scene.psf,
        noise=scene.noise,
        half_width=scene.half_width,
    )
    labels = find_observations(arguments)
    named = [options.psf, options.noise_map, options.mask, scene.psf.file, options.model]
    read = [path for label in labels for path in files_of(label)]
    lists = [text[1:] for text in arguments if text.startswith("@")]
    written = [options.out, options.report, unfinished(options.out)]
    check_outputs(
        files=[path for path in written if path is not None],
        folders=[maps] if maps else [],
        inputs=[*read, *(re.sub(r"\[[^\]]*\]$", "", text) for text in named if text), *lists],
    )
    settings = {"scene": " ".join([options.model, *overrides])}
    for name in ("pixel_scale", "psf", "noise_map", "mask", "image", "source_grid", "seed"):
        if (value := getattr(options, name)) is not None:
            settings[name.replace("_", " ")] = str(value)
    settings["darklens"] = darklens.__version__
    if maps and not unfinished(options.out).exists():
        prepare_folder(maps)
    return _Run(options, labels, scene, inputs, _map_paths(maps, labels) if maps else None, settings)


def _print_summary(rows: Sequence["Row"], verb: str, options: Options) -> int:
    """Print the problems of observations and a summary, and return the exit code."""
    from darklens.files import size_in_words

    problems = [row for row in rows if row.message]
    for row in problems:
        print_error(row.message)
    print(f"{len(rows) - len(problems)} of {len(rows)} images {verb}, in {options.out}")
    if doubtful := sum(bool(row.columns.get("message")) for row in rows):
        print(f"Not to be trusted: {doubtful} of these; see the column `message`.")
    if options.report is not None:
        print(f"Report ({size_in_words(options.report.stat().st_size)}): {options.report}")
    if any(row.is_unexpected for row in problems):
        return 1
    return PARTIAL_SUCCESS if problems else 0


def _map_paths(folder: Path, labels: Sequence[str]) -> dict[str, Path]:
    """Return the path without suffix of the maps of each observation."""
    from darklens.report.maps import UniqueNames

    row = re.compile(r"(?P<file>.+)#(?P<row>\d+)")
    paths = []
    for label in labels:
        match = row.fullmatch(label)
        path = Path(match["file"] if match else label)
        paths.append(path.with_name(f"{path.stem}-{match['row']}{path.suffix}") if match else path)
    names = UniqueNames(paths)
    return {label: folder / names.of(path) for label, path in zip(labels, paths, strict=True)}
