"""Commands that judge systems and use them on images."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from darklens.cli.app import Model, StorePath, app, list_problems, progress
from darklens.errors import InputError

FILES = (
    "Images (npy, npz, FITS, HDF5), folders of them, patterns in quotes, @LIST.txt with one path a line, or - for such "
    "lines on standard input."
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
        Path, Parameter(help="Folder to write: eval.json, curves.json, predictions.csv, figures, report.html.")
    ],
    seed: Annotated[int, Parameter(help="Of the bootstrap.")] = 0,
) -> int:
    """Judge a trained system on images it has not seen.

    Example: `darklens evaluate runs/sis stores/test --out results/sis`
    """
    from darklens.bundle import Bundle, locate
    from darklens.data.store import Store
    from darklens.evaluation.evaluate import evaluate as judge
    from darklens.executors import usable_cores
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
        Parameter(
            help="Run folder, bundle folder, or a shipped model's name (`darklens models`); left out, lens_residual."
        ),
    ],
    files: Annotated[list[Path] | None, Parameter(help=FILES)] = None,
    *,
    out: Annotated[Path, Parameter(help="Table to write (.csv).")],
    pixel_scale: PixelScale = None,
    image: ImageName = None,
    maps: Annotated[
        Path | None,
        Parameter(
            help="New folder for what a system made of each image, as FILE.npz and FILE.png. lens_residual: image, "
            "residual, line_residual, point_residual, evidence, line_evidence (sigma); a system with a lens step: "
            "image, k, alpha_x, alpha_y (arcsec), source; both: pixel_scale (arcsec). A second file of one name "
            "becomes FILE-2."
        ),
    ] = None,
) -> int:
    """Classify image files. A bad file gets an error row; the others go on, and the exit code is 3.

    Images of another size or pixel scale are cropped, padded by up to a fifth, or resampled about their centre; the
    column `changes` says so.

    Example: `darklens predict my-lens.npy more-lenses/ --out predictions.csv --maps maps`

    Example with a model of your own: `darklens predict runs/sis my-lens.npy --out predictions.csv`
    """
    from darklens.bundle import DEFAULT_MODEL, Bundle, is_model
    from darklens.data.listing import is_listing
    from darklens.data.readers import SUFFIXES
    from darklens.files import write_text
    from darklens.predict import find_images, to_csv
    from darklens.predict import predict as classify

    given = list(files or [])
    is_image = model.exists() or model.name.lower().endswith(SUFFIXES) or is_listing(model)
    if not is_model(model) and (not given or is_image):
        model, given = Path(DEFAULT_MODEL), [model, *given]
    bundle, paths = Bundle.load(model), find_images(given)
    bundle.require_classifier("predict")
    keep: dict[str, Any] = {}
    if maps is not None:
        from darklens.report.maps import MapWriter

        keep["use"] = MapWriter(bundle, maps)
    with progress("Predicting", len(paths)) as advance:
        rows = classify(bundle, paths, pixel_scale=pixel_scale, name=image, advance=advance, **keep)
    write_text(out, to_csv(rows, bundle.contract.classes))
    print(f"{sum(not row.message for row in rows)} of {len(rows)} images classified, in {out}")
    return list_problems([row.message for row in rows if row.message])


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
    writer = ExplanationWriter(bundle, out, method=method, label=None if label is None else classes.index(label))
    with progress("Explaining", len(paths)) as advance:
        rows = predict(bundle, paths, pixel_scale=pixel_scale, name=image, use=writer, advance=advance)
    write_text(out / "predictions.csv", to_csv(rows, classes))
    print(f"{sum(not row.message for row in rows)} of {len(rows)} images explained, in {out}")
    return list_problems([row.message for row in rows if row.message])
