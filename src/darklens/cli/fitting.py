"""The command that fits scenes to telescope images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from darklens.cli.root import PARTIAL_SUCCESS, Positive, app, check_outputs, print_error, progress
from darklens.errors import ConfigError

_OVERRIDE = re.compile(r"[\w+-]+(\.[\w+-]+)*=")
FileOption = Annotated[
    str | None, Parameter(help="FILE, or FILE[NAME] for one of its extensions; used for all images.")
]


@app.command
def fit(
    *files: Annotated[
        str,
        Parameter(
            help="Images (FITS, HDF5, npz, npy); folders with image.fits (or data.fits), noise_map.fits (or "
            "noise.fits), psf.fits and perhaps mask.fits; npz or HDF5 files with `images`, `noise`, `psf` and "
            "`pixel_scale`, each image one row; lists @LIST.txt. Overrides of the scene such as epl.slope=2."
        ),
    ],
    model: Annotated[
        str, Parameter(help="Scene to fit: a name (`darklens models` lists them), or a YAML file.")
    ] = "epl-shear",
    out: Annotated[Path, Parameter(help="CSV table to write.")],
    psf: FileOption = None,
    noise_map: Annotated[
        str | None,
        Parameter(
            help="FILE or FILE[NAME]: standard deviation, variance or weight of each pixel, in the unit of the image."
        ),
    ] = None,
    mask: Annotated[str | None, Parameter(help="FILE or FILE[NAME]: non-zero pixels are left out.")] = None,
    pixel_scale: Annotated[
        float | None, Parameter(help="Pixel scale of the images, arcsec; needed if the files do not state it.")
    ] = None,
    image: Annotated[
        str | None,
        Parameter(help="Array, HDF5 dataset or FITS extension (name or number) with the image, if there are several."),
    ] = None,
    flip_rows: Annotated[
        bool, Parameter(negative="", help="Row 0 is at the top, as in files of PyAutoLens; for all arrays.")
    ] = False,
    maps: Annotated[
        Path | None,
        Parameter(
            help="New folder for FILE.png and FILE.npz of each lens: data, model, residual in units of the noise, and "
            "source plane."
        ),
    ] = None,
    workers: Annotated[Positive, Parameter(help="Number of processes.")] = 1,
    seed: Annotated[int, Parameter(help="Random seed of the starts.")] = 0,
) -> int:
    """Fit a lens model to telescope images with noise map, PSF and mask.

    The table has one row per image: theta_E (effective Einstein radius) and centre in arcsec, slope of the density,
    axis ratio q, phi of the major axis in degrees from x to y, shear, multipole amplitudes a3 and a4 (relative to
    theta_E), then the errors (standard deviations) and all parameters. `changes` lists assumptions about the files. An
    image that cannot be used gets a row with the reason (exit code 3). To continue an interrupted run without --maps,
    repeat the command.

    A pixel is left out where the mask is non-zero, or the noise is not finite, zero, or above 1e6 times its median.

    Example: `darklens fit lenses/ --model epl-shear+light --pixel-scale 0.05 --out fits.csv --maps maps`

    Example: `darklens fit lens.fits --psf psf.fits --noise-map rms.fits --model sie-shear half_width=3 --out fits.csv`
    """
    from darklens.fit.scene_table import fit_table, unfinished
    from darklens.scene import specification
    from darklens.scene.observation_files import Inputs, files_of, find_observations

    overrides = [text for text in files if _OVERRIDE.match(text) and not Path(text).exists()]
    arguments = [text for text in files if text not in overrides]
    if not arguments:
        raise ConfigError("Name the images or folders to fit, such as `darklens fit lens.fits --out fits.csv`.")
    scene = specification.get(model, overrides)
    inputs = Inputs(
        psf=psf,
        noise_map=noise_map,
        mask=mask,
        pixel_scale=pixel_scale,
        image=image,
        flip_rows=flip_rows,
        psf_settings=scene.psf,
        noise=scene.noise,
        half_width=scene.half_width,
    )
    labels = find_observations(arguments)
    options = [re.sub(r"\[[^\]]*\]$", "", text) for text in (psf, noise_map, mask, scene.psf.file, model) if text]
    read = [path for label in labels for path in files_of(label)]
    lists = [text[1:] for text in arguments if text.startswith("@")]
    check_outputs(
        files=[out] if maps else [out, unfinished(out)],
        folders=[maps] if maps else [],
        inputs=[*read, *options, *lists],
    )
    with progress("Fitting", len(labels)) as advance:
        rows = fit_table(
            labels,
            scene,
            inputs,
            out,
            maps=_map_paths(maps, labels) if maps else None,
            seed=seed,
            workers=workers,
            advance=advance,
        )
    problems = [row for row in rows if row.message]
    for row in problems:
        print_error(row.message)
    print(f"{len(rows) - len(problems)} of {len(rows)} images fitted, in {out}")
    if any(row.is_unexpected for row in problems):
        return 1
    return PARTIAL_SUCCESS if problems else 0


def _map_paths(folder: Path, labels: Sequence[str]) -> dict[str, Path]:
    """Return the path without suffix of the maps of each observation."""
    from darklens.data.store import prepare_folder
    from darklens.report.maps import UniqueNames

    prepare_folder(folder)
    row = re.compile(r"(?P<file>.+)#(?P<row>\d+)")
    paths = []
    for label in labels:
        match = row.fullmatch(label)
        path = Path(match["file"] if match else label)
        paths.append(path.with_name(f"{path.stem}-{match['row']}{path.suffix}") if match else path)
    names = UniqueNames(paths)
    return {label: folder / names.of(path) for label, path in zip(labels, paths, strict=True)}
