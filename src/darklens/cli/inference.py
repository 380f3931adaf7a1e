"""Commands that judge systems and use them on images."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import Model, Positive, StorePath, app, complain, list_problems, progress
from darklens.errors import ConfigError, InputError

_MOST_LISTED = 1000  # bad files; beyond, the table has them
FILES = (
    "Images (npy, npz, FITS, HDF5, PNG, TIFF), folders of them, patterns in quotes, @LIST.txt with one path a line, or "
    "- for such lines on standard input."
)
PixelScale = Annotated[
    float | None,
    Parameter(help="Pixel scale of the images in arcsec, in place of what the files say; without both, the model's."),
]
ImageName = Annotated[
    str | None,
    Parameter(help="Array, HDF5 dataset, or FITS header unit (name or number) of files with several images."),
]


@app.command
def evaluate(
    model: Model,
    store: StorePath,
    *,
    out: Annotated[
        Path,
        Parameter(help="Folder to write: eval.json, curves.json, predictions.csv, figures, report.html; overwritten."),
    ],
    seed: Annotated[int, Parameter(help="Of the bootstrap.")] = 0,
) -> int:
    """Judge a trained system on images it has not seen.

    Example: `darklens evaluate runs/sis stores/test --out results/sis`
    """
    from darklens.bundle import Bundle
    from darklens.data.store import Store
    from darklens.evaluation.evaluate import evaluate as judge
    from darklens.executors import usable_cores
    from darklens.locate import locate
    from darklens.report.evaluation import write_evaluation

    opened, bundle = Store(store), Bundle.load(model)
    with progress("Evaluating", len(opened)) as advance:
        result = judge(bundle, locate(model), opened, seed=seed, workers=usable_cores(), advance=advance)
    write_evaluation(out, result, bundle, opened, run=model)
    for warning in result.evaluation["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    if result.probabilities is not None:
        auc = result.evaluation["auc"]["macro"]
        print(f"macro AUC {auc['value']:.4f} [{auc['ci95'][0]:.4f}, {auc['ci95'][1]:.4f}]")
    print(f"Report in {out / 'report.html'}")
    return 0


@app.command
def compare(
    evaluations: Annotated[list[Path], Parameter(help="Folders that `evaluate` wrote.")],
    *,
    out: Annotated[Path, Parameter(help="Folder to write: compare.json, compare.md, compare.png, report.html.")],
    predictions: Annotated[Path | None, Parameter(help="A table of `predict` to show in the report.")] = None,
) -> int:
    """Compare systems on the same test images: paired differences with intervals and tests.

    Trainings of one recipe that differ only in their seed count as one system.

    Example: `darklens compare results/resnet results/sis --out results/comparison`
    """
    from darklens.report.comparison import write_comparison

    write_comparison(out, evaluations, predictions=predictions)
    print(f"Report in {out / 'report.html'}")
    return 0


@app.command
def predict(
    model: Annotated[
        Path,
        Parameter(help="Run folder, bundle folder, or a shipped model's name (`darklens models`); may be left out."),
    ] = Path("lens_residual"),  # locate.DEFAULT_MODEL
    files: Annotated[list[Path] | None, Parameter(help=FILES)] = None,
    *,
    out: Annotated[Path, Parameter(help="Table to write (.csv).")],
    pixel_scale: PixelScale = None,
    image: ImageName = None,
    engine: Annotated[
        Literal["auto", "eager", "compiled", "onnx", "int8"],
        Parameter(
            help="compiled (needs a C++ compiler) and onnx (needs the extra `onnx`) take half a minute of preparation "
            "and give the same classes, and probabilities to 1e-4; auto: onnx for thousands of files. int8: "
            "faster and less exact, 8-bit numbers whose range is set by the first 64 images."
        ),
    ] = "auto",
    workers: Annotated[
        Positive | None, Parameter(help="Processes; by default one per usable core, fewer for few files.")
    ] = None,
    cluster: Annotated[
        str | None,
        Parameter(
            help="Run on the Dask cluster at this address (tcp://host:port) instead. Its workers must have the same "
            "darklens and see the model, the files and --out: a file system that they all share."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        Parameter(
            help="New folder for what a system made of each image, as FILE.npz and FILE.png. lens_residual: image, "
            "residual, line_residual, point_residual, evidence, line_evidence (sigma); a system with a lens step: "
            "image, k, alpha_x, alpha_y (arcsec), source; both: pixel_scale (arcsec). Files of one name have their "
            "folder's in front. One process makes them, from the start."
        ),
    ] = None,
) -> int:
    """Classify image files. A bad file gets an error row; the others go on, and the exit code is 3.

    Images of another size or pixel scale are cropped, padded by up to two fifths, or resampled about their centre; the
    column `changes` says so. An interrupted run goes on when the command is given again.

    Example: `darklens predict my-lens.npy more-lenses/ --out predictions.csv --maps maps`

    Example with a model of your own: `darklens predict runs/sis my-lens.npy --out predictions.csv`
    """
    from contextlib import nullcontext
    from itertools import islice

    from darklens import executors
    from darklens.data.listing import is_listing
    from darklens.data.readers import SUFFIXES
    from darklens.locate import DEFAULT_MODEL, is_model, locate
    from darklens.predict import find_images, predict_table, problems_in

    given = list(files or [])
    is_image = model.exists() or model.name.lower().endswith(SUFFIXES) or is_listing(model)
    if not is_model(model) and (not given or is_image):
        model, given = Path(DEFAULT_MODEL), [model, *given]
    locate(model)
    if not given:
        raise ConfigError("Name the files or folders to classify, such as `darklens predict my-lens.npy --out t.csv`.")
    if cluster and workers:
        raise ConfigError("--workers is for this machine and --cluster has its own; give one of them.")
    if maps is not None and (cluster or (workers or 1) > 1 or engine not in ("auto", "eager")):
        raise ConfigError("--maps are made by one process with engine eager; leave out --workers, --cluster, --engine.")
    paths = [str(path) for path in find_images(given)]
    if maps is not None:
        bad = _predict_with_maps(model, paths, out, maps, pixel_scale=pixel_scale, image=image)
    else:
        with (
            executors.cluster(cluster) if cluster else nullcontext() as executor,
            progress("Predicting", len(paths)) as advance,
        ):
            done = predict_table(
                model,
                paths,
                out,
                pixel_scale=pixel_scale,
                image=image,
                engine=engine,
                workers=workers,
                executor=executor,
                advance=advance,
                say=complain,
            )
        bad = done.bad
        if done.kept:
            print(f"{done.kept} images were classified before it was interrupted.")
    print(f"{len(paths) - bad} of {len(paths)} images classified, in {out}")
    listed = list(islice(problems_in(out), _MOST_LISTED)) if bad else []
    if bad > len(listed):
        listed.append(f"{bad - len(listed)} more files could not be used; the column message of {out} has the reasons.")
    return list_problems(listed)


def _predict_with_maps(
    model: Path, paths: Sequence[str], out: Path, maps: Path, *, pixel_scale: float | None, image: str | None
) -> int:
    """Classify files with maps and return how many were bad."""
    from darklens.bundle import Bundle
    from darklens.files import write_text
    from darklens.predict import predict, to_csv
    from darklens.report.maps import MapWriter

    bundle = Bundle.load(model)
    bundle.require_classifier("predict")
    given = [Path(path) for path in paths]
    writer = MapWriter(bundle, maps, given)
    with progress("Predicting", len(paths)) as advance:
        rows = predict(bundle, given, pixel_scale=pixel_scale, name=image, advance=advance, use=writer)
    write_text(out, to_csv(rows, bundle.contract.classes))
    return sum(bool(row.message) for row in rows)


@app.command
def explain(
    model: Model,
    files: Annotated[list[Path], Parameter(help=FILES)],
    *,
    out: Annotated[
        Path,
        Parameter(
            help="New folder for predictions.csv and, for each image, FILE.png and FILE.npz: inputs and attribution "
            "(channels, y, x; log-odds), numbers of fits, pixel_scale (arcsec)."
        ),
    ],
    method: Annotated[
        Literal["integrated_gradients", "occlusion"],
        Parameter(help="integrated_gradients adds up to the log-odds; occlusion covers a window at a time."),
    ] = "integrated_gradients",
    label: Annotated[str | None, Parameter(help="Class to explain; by default the one that the model prefers.")] = None,
    pixel_scale: PixelScale = None,
    image: ImageName = None,
) -> int:
    """Show which pixels speak for a class and which against it. A bad file is listed, and the exit code is 3.

    Needs `pip install 'darklens[explain]'`. Example: `darklens explain lens_residual my-lens.npy --out why`
    """
    from darklens.bundle import Bundle
    from darklens.files import write_text
    from darklens.predict import find_images, predict, to_csv
    from darklens.report.explanations import ExplanationWriter

    bundle, paths = Bundle.load(model), find_images(files)
    classes = bundle.contract.classes
    if label is not None and label not in classes:
        raise InputError(f"--label: the model knows {', '.join(classes)}, not {label}.")
    writer = ExplanationWriter(bundle, out, paths, method=method, label=None if label is None else classes.index(label))
    with progress("Explaining", len(paths)) as advance:
        rows = predict(bundle, paths, pixel_scale=pixel_scale, name=image, use=writer, advance=advance)
    write_text(out / "predictions.csv", to_csv(rows, classes))
    print(f"{sum(not row.message for row in rows)} of {len(rows)} images explained, in {out}")
    return list_problems([row.message for row in rows if row.message])
