"""Commands that apply a trained model: evaluate, compare, predict, explain."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import (
    Device,
    Model,
    Positive,
    StorePath,
    app,
    check_outputs,
    print_error,
    print_problems,
    progress,
)
from darklens.errors import ConfigError, InputError

if TYPE_CHECKING:
    from darklens.predict import Auxiliary

_MAX_LISTED = 1000  # unusable files to print; the table lists them all
FILES = (
    "Image files (npy, npz, FITS, HDF5, PNG, TIFF), stacks of images (npz, HDF5 or npy; FILE#0 is the first image), "
    "folders (without noise maps, PSFs and masks, named as for `fit`), "
    "quoted patterns such as 'lens*.fits', @LIST.txt for a "
    "text file with one path per line, or - to read the paths from standard input."
)
PixelScale = Annotated[
    float | None,
    Parameter(help="Pixel scale of the images, arcsec; by default that of the file, or else that of the model."),
]
ImageName = Annotated[
    str | None,
    Parameter(help="Array, HDF5 dataset or FITS extension (name or number) to read from files with several images."),
]


@app.command
def evaluate(
    model: Model,
    store: StorePath,
    *,
    out: Annotated[
        Path,
        Parameter(
            help="Folder for eval.json, curves.json, predictions.csv, figures and report.html; existing files are "
            "overwritten."
        ),
    ],
    seed: Annotated[int, Parameter(help="Random seed of the bootstrap.")] = 0,
    device: Device = "cpu",
) -> int:
    """Evaluate a model on test images: metrics with 95 % intervals, calibration, detection limit, and a report.

    Example: `darklens evaluate runs/sis stores/test --out results/sis`
    """
    from darklens.bundle import Bundle
    from darklens.data.store import Store
    from darklens.evaluation.evaluate import evaluate as evaluate_model
    from darklens.executors import usable_cores
    from darklens.locate import locate
    from darklens.report.evaluation import FILES, write_evaluation

    check_outputs(folders=[out], files=[out / name for name in FILES], stores=[store], models=[model])
    images, bundle = Store(store), Bundle.load(model, device=device)
    with progress("Evaluating", len(images)) as advance:
        result = evaluate_model(bundle, locate(model), images, seed=seed, workers=usable_cores(), advance=advance)
    write_evaluation(out, result, bundle, images, run=model)
    for warning in result.evaluation["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    if result.probabilities is not None:
        auc = result.evaluation["auc"]["macro"]
        print(f"macro AUC {auc['value']:.4f} [{auc['ci95'][0]:.4f}, {auc['ci95'][1]:.4f}]")
    print(f"Report in {out / 'report.html'}")
    return 0


@app.command
def compare(
    evaluations: Annotated[list[Path], Parameter(help="Folders written by `evaluate`, all on the same store.")],
    *,
    out: Annotated[Path, Parameter(help="Folder for compare.json, compare.md, compare.png and report.html.")],
    predictions: Annotated[Path | None, Parameter(help="Table written by `predict` to include in the report.")] = None,
) -> int:
    """Compare models on the same test images: differences with 95 % intervals, DeLong's and McNemar's tests.

    Evaluations of runs that differ only in the random seed are combined.

    Example: `darklens compare results/resnet results/sis --out results/comparison`
    """
    from darklens.report.comparison import FILES, write_comparison

    read = [path for folder in evaluations for path in folder.glob("*")]
    check_outputs(folders=[out], files=[out / name for name in FILES], inputs=[*read, *filter(None, [predictions])])
    write_comparison(out, evaluations, predictions=predictions)
    print(f"Report in {out / 'report.html'}")
    return 0


@app.command(usage="Usage: darklens predict --out PATH [OPTIONS] [MODEL] FILES...")
def predict(
    model: Annotated[
        Path,
        Parameter(
            help="Run folder, bundle folder, name of a shipped model (`darklens models` lists them), or Hugging Face "
            "repository; optional."
        ),
    ] = Path("lens_residual"),  # locate.DEFAULT_MODEL
    files: Annotated[list[Path] | None, Parameter(help=FILES)] = None,
    *,
    out: Annotated[Path, Parameter(help="CSV table to write.")],
    pixel_scale: PixelScale = None,
    image: ImageName = None,
    psf: Annotated[
        str | None,
        Parameter(
            help="PSF of the images: FILE, or FILE[NAME] for one of its extensions. Models use the PSF of their "
            "population; the verdict is `unknown` if this one differs."
        ),
    ] = None,
    noise_map: Annotated[
        str | None,
        Parameter(
            help="Noise map of the images: standard deviation, variance or weight. Pixels without a valid noise are "
            "masked; the verdict is `unknown` if the map does not agree with the noise of the image."
        ),
    ] = None,
    mask: Annotated[str | None, Parameter(help="Mask of the images: non-zero pixels have no weight in fits.")] = None,
    backend: Annotated[
        Literal["auto", "eager", "compiled", "onnx", "int8"],
        Parameter(
            name=["--backend", "--engine"],
            help="Software that evaluates the network. eager: PyTorch. compiled (needs a C++ compiler) and onnx (needs "
            "the extra `onnx`): faster after 30 s of preparation; same classes, probabilities within 1e-4. auto: onnx "
            "for thousands of files, otherwise eager. int8: fastest and least accurate, 8-bit arithmetic calibrated on "
            "the first 64 images. --engine is the old name.",
        ),
    ] = "auto",
    workers: Annotated[
        Positive | None,
        Parameter(help="Number of processes; by default one per available core, fewer for few files, one on a GPU."),
    ] = None,
    cluster: Annotated[
        str | None,
        Parameter(
            help="Address (tcp://host:port) of a Dask cluster to run on. Its workers need the same version of darklens "
            "and access to the model, the files and --out on a shared file system."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        Parameter(
            help="New folder for maps of each image: FILE.npz and FILE.png. lens_residual gives image, residual, "
            "line_residual, point_residual, evidence and line_evidence (standard deviations); systems that predict a "
            "deflection give image, k, alpha_x, alpha_y (arcsec) and source; both give pixel_scale (arcsec). If file "
            "names repeat, the name of the folder comes first. Runs in one process and cannot be continued."
        ),
    ] = None,
    fallback: Annotated[
        bool,
        Parameter(
            help="Classify images that the model doubts with its fallback: for lens_residual, lens_residual_robust, "
            "which also fits the ellipticity and light of the lens and the width of the PSF. The columns `model` and "
            "`fallback_reason` name the model and the reasons."
        ),
    ] = True,
    checks: Annotated[
        bool,
        Parameter(
            help="Fit a lens to each image to check the class of a network that takes images, if the model names a "
            "model for this (resnet_simple and sis_autoencoder2: lens_residual). Without, they are faster, and can "
            "be confident and wrong on images unlike their training images."
        ),
    ] = True,
    device: Device = "cpu",
) -> int:
    """Classify image files. A file that cannot be used gets a row with the reason (exit code 3).

    Images of a different size or pixel scale are cropped, padded (by up to 40 % of the side) or resampled; the column
    `changes` lists what was done. To continue an interrupted run, repeat the command.

    Example: `darklens predict my-lens.npy more-lenses/ --out predictions.csv --maps maps`

    Example with your own model: `darklens predict runs/sis my-lens.npy --out predictions.csv`
    """
    from contextlib import nullcontext
    from itertools import islice

    from darklens import executors
    from darklens.data.image_paths import is_listing
    from darklens.data.image_stacks import location
    from darklens.data.readers import SUFFIXES
    from darklens.locate import DEFAULT_MODEL, is_model, locate
    from darklens.predict import Auxiliary, find_images, predict_table, problems_in

    arguments = list(files or [])
    first, _ = location(model)
    is_image = first.exists() or first.name.lower().endswith(SUFFIXES) or is_listing(model)
    if not is_model(model) and (not arguments or is_image):
        model, arguments = Path(DEFAULT_MODEL), [model, *arguments]
    locate(model)
    if not arguments:
        raise ConfigError("Name the files or folders to classify, such as `darklens predict my-lens.npy --out t.csv`.")
    if cluster and workers:
        raise ConfigError("--workers is for this machine only; give either --workers or --cluster.")
    if maps is not None and (cluster or (workers or 1) > 1 or backend not in ("auto", "eager")):
        raise ConfigError("--maps needs one process and the eager backend; omit --workers, --cluster and --backend.")
    paths = [str(path) for path in find_images(arguments)]
    lists = [str(argument)[1:] for argument in arguments if str(argument).startswith("@")]
    unfinished = [] if maps else [out.with_name(f"{out.name}.unfinished")]
    auxiliary = Auxiliary.of(psf=psf, noise_map=noise_map, mask=mask)
    check_outputs(
        files=[out],
        folders=[*unfinished, *filter(None, [maps])],
        inputs=[*dict.fromkeys(location(path)[0] for path in paths), *lists, *(auxiliary.files if auxiliary else ())],
        models=[model],
    )
    if maps is not None:
        bad = _predict_with_maps(
            model,
            paths,
            out,
            maps,
            pixel_scale=pixel_scale,
            image=image,
            auxiliary=auxiliary,
            fallback=fallback,
            checks=checks,
            device=device,
        )
    else:
        with (
            executors.cluster(cluster) if cluster else nullcontext() as executor,
            progress("Predicting", len(paths)) as advance,
        ):
            summary = predict_table(
                model,
                paths,
                out,
                pixel_scale=pixel_scale,
                image=image,
                auxiliary=auxiliary,
                backend=backend,
                device=device,
                fallback=fallback,
                checks=checks,
                workers=workers,
                executor=executor,
                advance=advance,
                warn=print_error,
            )
        bad = summary.bad
        if summary.resumed:
            print(f"{summary.resumed} images were already classified before the interruption.")
    print(f"{len(paths) - bad} of {len(paths)} images classified, in {out}")
    listed = list(islice(problems_in(out), _MAX_LISTED)) if bad else []
    if bad > len(listed):
        listed.append(f"{bad - len(listed)} more files cannot be used; see the column `message` of {out}.")
    return print_problems(listed)


def _predict_with_maps(
    model: Path,
    paths: Sequence[str],
    out: Path,
    maps: Path,
    *,
    pixel_scale: float | None,
    image: str | None,
    auxiliary: "Auxiliary | None",
    fallback: bool,
    checks: bool,
    device: str,
) -> int:
    """Classify files with maps and return the number that cannot be used."""
    from darklens.files import write_text
    from darklens.predict import loaded_bundle, predict, to_csv, warn_if_unchecked
    from darklens.report.maps import MapWriter

    bundle = loaded_bundle(model, fallback=fallback, checks=checks, device=device)
    bundle.require_classifier("predict")
    files = [Path(path) for path in paths]
    writer = MapWriter(bundle, maps, files)
    with progress("Predicting", len(paths)) as advance:
        rows = predict(
            bundle,
            files,
            pixel_scale=pixel_scale,
            name=image,
            advance=advance,
            on_batch=writer,
            with_maps=True,
            auxiliary=auxiliary,
        )
    write_text(out, to_csv(rows, bundle.contract.classes))
    warn_if_unchecked(bundle, print_error)
    return sum(bool(row.message) for row in rows)


@app.command
def explain(
    model: Model,
    files: Annotated[list[Path], Parameter(help=FILES)],
    *,
    out: Annotated[
        Path,
        Parameter(
            help="New folder for predictions.csv and, for each image, FILE.png and FILE.npz: inputs and attributions "
            "(channel, y, x; log-odds), fit parameters, and pixel_scale (arcsec)."
        ),
    ],
    method: Annotated[
        Literal["integrated_gradients", "occlusion"],
        Parameter(
            help="Attribution method: integrated_gradients sums to the log-odds; occlusion covers one window at a time."
        ),
    ] = "integrated_gradients",
    label: Annotated[str | None, Parameter(help="Class to explain; by default the predicted class.")] = None,
    pixel_scale: PixelScale = None,
    image: ImageName = None,
) -> int:
    """Compute attributions: how much each input pixel adds to the log-odds of a class.

    Files that cannot be used are listed (exit code 3). Needs `pip install 'darklens[explain]'`.

    Example: `darklens explain lens_residual my-lens.npy --out attributions`
    """
    from darklens.bundle import Bundle
    from darklens.data.image_stacks import location
    from darklens.files import write_text
    from darklens.predict import find_images, predict, to_csv
    from darklens.report.explanations import ExplanationWriter

    paths = find_images(files)
    check_outputs(folders=[out], inputs=dict.fromkeys(location(path)[0] for path in paths), models=[model])
    bundle = Bundle.load(model)
    classes = bundle.contract.classes
    if label is not None and label not in classes:
        raise InputError(f"--label: the classes of the model are {', '.join(classes)}, not {label}.")
    writer = ExplanationWriter(bundle, out, paths, method=method, label=None if label is None else classes.index(label))
    with progress("Explaining", len(paths)) as advance:
        rows = predict(
            bundle, paths, pixel_scale=pixel_scale, name=image, on_batch=writer, advance=advance, with_maps=True
        )
    write_text(out / "predictions.csv", to_csv(rows, classes))
    print(f"{sum(not row.message for row in rows)} of {len(rows)} images explained, in {out}")
    return print_problems([row.message for row in rows if row.message])
