"""The command line. Heavy imports happen inside the command that needs them, so that --help is instant."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, validators

import darklens
from darklens.errors import ConfigError, DarklensError, InputError

if TYPE_CHECKING:
    from darklens.data.store import Store
    from darklens.simulate.populations import Population as PopulationModel

app = App(
    name="darklens",
    help="Physics-informed classification of dark-matter substructure in strong-lens images.\n\n"
    "Angles are in arcsec. Exit codes: 0 done; 2 wrong use or bad configuration; 3 finished, but some inputs were "
    "bad or `doctor` warns; 1 anything unexpected (`--debug` shows where).",
    version=darklens.__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main says how to go on
)
config_app = App(name="config", help="Show a recipe with all its defaults, or the schema of recipes.")
app.command(config_app)

SOME_INPUTS_BAD = 3
Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Recipe = Annotated[str, Parameter(help="A name from `darklens recipes`, or a YAML file.")]
Population = Annotated[str, Parameter(help="A name from `darklens populations`, or a YAML file.")]
StorePath = Annotated[Path, Parameter(help="Folder that `simulate` or `import` wrote.")]
Model = Annotated[Path, Parameter(help="Run folder of `train`, or a bundle folder.")]


@app.command
def simulate(
    population: Population,
    *overrides: Annotated[str, Parameter(help="Changes such as `lens.gamma=0` or `field.n_pixels=64`.")],
    out: Annotated[Path, Parameter(help="Folder to write.")],
    n_per_class: Annotated[Positive, Parameter(help="Images of each class.")] = 1000,
    seed: Annotated[int, Parameter(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[Positive | None, Parameter(help="Processes; by default one per usable core.")] = None,
    cluster: Annotated[
        str | None,
        Parameter(
            help="Run on the Dask cluster at this address (tcp://host:port) instead. Its workers must have the same "
            "darklens and see --out: a file system that they all share."
        ),
    ] = None,
    shard_size: Annotated[Positive | None, Parameter(help="Images in a file; by default 256 or 64 MB.")] = None,
    engine: Annotated[
        Literal["eager", "compiled"],
        Parameter(help="compiled: some three times as fast after half a minute of preparation; differs in last bits."),
    ] = "eager",
    format: Annotated[
        Literal["store", "deeplense"], Parameter(help="A store, or DeepLense's folders of .npy files.")
    ] = "store",
) -> int:
    """Simulate labelled lens images.

    An interrupted simulation goes on when the command is given again.

    Example: `darklens simulate common-test-i --out stores/train --n-per-class 10000 --seed 1`
    """
    from contextlib import nullcontext
    from functools import partial

    from darklens import executors
    from darklens.simulate import populations
    from darklens.simulate.generate import SHARD_SIZE, generate

    chosen = populations.get(population, overrides)
    n = n_per_class * len(chosen.classes)
    if cluster and workers:
        raise ConfigError("--workers is for this machine and --cluster has its own; give one of them.")
    if workers is None:
        # Starting a process takes longer than a shard.
        workers = min(executors.usable_cores(), n // (2 * SHARD_SIZE)) or 1
    with executors.cluster(cluster) if cluster else nullcontext() as executor:
        make = partial(
            generate,
            chosen,
            n_per_class=n_per_class,
            seed=seed,
            workers=workers,
            executor=executor,
            engine=engine,
            shard_size=shard_size,
        )
        if format == "store":
            with _progress("Simulating", n) as advance:
                make(out, advance=advance)
        else:
            _simulate_folder(chosen, n, out, make)
    print(f"{n} images of {chosen.name} in {out}")
    return 0


def _simulate_folder(population: "PopulationModel", n: int, out: Path, make: "Callable[..., Store]") -> None:
    """Simulate a store beside `out` and turn it into DeepLense's folders; both steps can be interrupted."""
    import shutil

    from darklens.data.deeplense import export_folder
    from darklens.data.store import prepare_folder
    from darklens.files import require_space
    from darklens.simulate.generate import bytes_needed

    prepare_folder(out)
    scratch = out.parent / f".{out.name}.unfinished"
    if not scratch.exists():
        require_space(out, 3 * bytes_needed(population, n))  # a float32 store and float64 files
    with _progress("Simulating", n) as advance:
        store = make(scratch / "store", advance=advance)
    shutil.rmtree(scratch / "folder", ignore_errors=True)
    with _progress("Writing .npy files", n) as advance:
        export_folder(store, scratch / "folder", advance=advance)
    (scratch / "folder").rename(out)
    shutil.rmtree(scratch)


@app.command(name="import")
def import_(
    source: Annotated[Path, Parameter(help="DeepLense folder: no/, sphere/, vort/ with .npy files, or an index.csv.")],
    *,
    out: Annotated[Path, Parameter(help="Store to write.")],
    pixel_scale: Annotated[float, Parameter(help="Pixel scale of the images, arcsec.")] = 0.05,
) -> int:
    """Import labelled images into a store; bad files are listed and left out.

    Example: `darklens import data/Common_Test_I/train --out stores/train`
    """
    from darklens.data.deeplense import import_folder, list_images

    if pixel_scale <= 0:
        raise InputError(f"--pixel-scale must be positive (arcsec), got {pixel_scale}.")
    with _progress("Importing", len(list_images(source))) as advance:
        report = import_folder(source, out, pixel_scale=pixel_scale, advance=advance)
    print(f"{len(report.store)} images in {out}")
    return _list_problems(report.problems)


@app.command
def inspect(
    store: StorePath,
    *,
    verify: Annotated[bool, Parameter(negative="", help="Check every shard's checksum and contents.")] = False,
) -> int:
    """Say what a store holds."""
    import numpy as np

    from darklens.data.store import Store

    opened = Store(store)
    index = opened.index
    print(f"{len(opened)} images of {index.n_pixels} x {index.n_pixels} pixels, {index.pixel_scale} arcsec each")
    print(f"{index.source}, seed {index.seed}, darklens {index.version}, sha256 {opened.sha256[:16]}")
    if verify:
        problems = list(opened.problems())
        if problems:
            return _list_problems(problems)
        print(f"All {len(index.shards)} shards match their checksums and the schema.")
    counts = np.bincount(opened.labels, minlength=len(index.classes))
    print(", ".join(f"{name}: {n}" for name, n in zip(index.classes, counts, strict=True)))
    return 0


@app.command
def train(
    recipe: Recipe,
    *overrides: Annotated[str, Parameter(help="Changes such as `stages.0.epochs=5` or `data.preprocess.crop=96`.")],
    data: Annotated[Path | None, Parameter(help="Store to train on; none if data.kind is stream.")] = None,
    out: Annotated[Path, Parameter(help="Run folder to write.")],
    seed: Annotated[int, Parameter(help="Decides weights, split, order and augmentation.")] = 0,
    resume: Annotated[bool, Parameter(negative="", help="Go on with an interrupted run.")] = False,
) -> int:
    """Train a recipe on a store, or on a stream of simulated images; images held out choose the best epoch.

    Example: `darklens train sis_autoencoder2 --data stores/train --out runs/sis stages.1.epochs=30`

    Example without data: `darklens train resnet_simple --out runs/endless data.kind=stream
    data.population=common-test-i`
    """
    from darklens.data.store import Store
    from darklens.training import recipe as recipes
    from darklens.training.run import fits_for
    from darklens.training.run import train as run

    chosen_recipe, store = recipes.get(recipe, overrides), Store(data) if data else None
    with _progress("Fitting", len(store) if store else 0) as advance:
        fits_for(chosen_recipe, store, advance=advance)
    bundle = run(chosen_recipe, store, out, seed=seed, resume=resume)
    contract = bundle.contract
    chosen = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in contract.validation.items())
    print(
        f"{contract.recipe}: {contract.parameters:,} parameters, "
        f"{contract.provenance['train_seconds']:.0f} s ({chosen})"
    )
    print(f"Bundle in {out / 'bundle'}")
    return 0


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
    with _progress("Evaluating", len(opened)) as advance:
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
    files: Annotated[list[Path] | None, Parameter(help="Images (.npy), or folders of them.")] = None,
    *,
    out: Annotated[Path, Parameter(help="Table to write (.csv).")],
    pixel_scale: Annotated[float | None, Parameter(help="Pixel scale of the images in arcsec, if known.")] = None,
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

    Example: `darklens predict my-lens.npy more-lenses/ --out predictions.csv --maps maps`

    Example with a model of your own: `darklens predict runs/sis my-lens.npy --out predictions.csv`
    """
    from darklens.bundle import DEFAULT_MODEL, Bundle, is_model
    from darklens.files import write_text
    from darklens.predict import find_images, to_csv
    from darklens.predict import predict as classify

    given = list(files or [])
    if not is_model(model) and (not given or model.exists() or model.suffix == ".npy"):
        model, given = Path(DEFAULT_MODEL), [model, *given]
    bundle, paths = Bundle.load(model), find_images(given)
    bundle.require_classifier("predict")
    keep: dict[str, Any] = {}
    if maps is not None:
        from darklens.report.maps import MapWriter

        keep["use"] = MapWriter(bundle, maps)
    with _progress("Predicting", len(paths)) as advance:
        rows = classify(bundle, paths, pixel_scale=pixel_scale, advance=advance, **keep)
    write_text(out, to_csv(rows, bundle.contract.classes))
    print(f"{sum(not row.message for row in rows)} of {len(rows)} images classified, in {out}")
    return _list_problems([row.message for row in rows if row.message])


@app.command
def ensemble(
    models: Annotated[list[Path], Parameter(help="Two or more runs, bundles or shipped models.")],
    *,
    out: Annotated[Path, Parameter(help="Bundle folder to write; it holds copies of the members' weights.")],
) -> int:
    """Make one model of several: its probabilities are the mean of theirs. It stands wherever a MODEL does.

    Sets and promised risks need images that no member was trained on: give the result to `darklens calibrate`.

    Example: `darklens ensemble runs/seed0 runs/seed1 runs/seed2 --out runs/ensemble`
    """
    from darklens.bundle import Bundle
    from darklens.ensemble import ensemble as average

    average([Bundle.load(model) for model in models]).save(out)
    print(f"Bundle of {len(models)} members in {out}")
    return 0


@app.command
def calibrate(
    model: Model,
    store: StorePath,
    *,
    out: Annotated[Path, Parameter(help="Bundle folder to write.")],
    seed: Annotated[int, Parameter(help="Of the halves that the images are shared by.")] = 0,
) -> int:
    """Calibrate a model anew: temperature, prediction sets, promised risks and what counts as unfamiliar.

    `train` does this at its end, on its validation images. The store must hold images that no network was trained on.

    Example: `darklens calibrate runs/ensemble stores/held-out --out runs/ensemble-calibrated`
    """
    from darklens.bundle import Bundle
    from darklens.data.store import Store
    from darklens.evaluation.calibrate import calibrate_on
    from darklens.executors import usable_cores

    opened = Store(store)
    with _progress("Calibrating", len(opened)) as advance:
        bundle = calibrate_on(Bundle.load(model), opened, seed=seed, workers=usable_cores(), advance=advance)
    bundle.save(out)
    assert bundle.contract.calibration is not None
    print(f"Temperature {bundle.contract.calibration.temperature:.3g}; bundle in {out}")
    return 0


@app.command
def explain(
    model: Model,
    files: Annotated[list[Path], Parameter(help="Images (.npy), or folders of them.")],
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
    with _progress("Explaining", len(paths)) as advance:
        rows = predict(bundle, paths, use=writer, advance=advance)
    write_text(out / "predictions.csv", to_csv(rows, classes))
    print(f"{sum(not row.message for row in rows)} of {len(rows)} images explained, in {out}")
    return _list_problems([row.message for row in rows if row.message])


@app.command
def export(
    model: Model,
    *,
    onnx: Annotated[Path, Parameter(help="ONNX file to write. Its input is raw images, its output probabilities.")],
) -> int:
    """Write a trained system as one ONNX file, once ONNX Runtime gives what torch gives to 1e-4.

    Needs `pip install 'darklens[onnx]'`. Example: `darklens export runs/sis --onnx sis.onnx`
    """
    from darklens.bundle import Bundle
    from darklens.export import export_onnx

    difference = export_onnx(Bundle.load(model), onnx)
    print(f"{onnx}: {onnx.stat().st_size / 1e6:.1f} MB, at most {difference:.1g} from torch")
    return 0


@app.command
def doctor(
    store: Annotated[Path | None, Parameter(help="Store to examine; none: this installation.")] = None,
    *,
    against: Annotated[
        list[Path] | None, Parameter(help="Other splits, such as the training store; give it once for each.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Report to write (.json).")] = None,
    seed: Annotated[int, Parameter(help="Of the permutations that say what chance would give.")] = 0,
) -> int:
    """Say what of a store gives its classes away besides substructure, and which images are there twice.

    Without a store: versions, device, and a self-test of the physics of some five seconds. Exit code: 0 nothing was
    found, 3 there are warnings, 1 the self-test failed.

    Example: `darklens doctor stores/test --against stores/train --out doctor.json`
    """
    from darklens.doctor import report

    if store is None:
        if against or out:
            raise ConfigError("--against and --out are for a store; name it first.")
        return report.installation(print)

    from darklens.data.store import Store
    from darklens.doctor.examine import examine

    opened, others = Store(store), [Store(path) for path in against or []]
    with _progress("Reading", sum(map(len, [opened, *others]))) as advance:
        found = examine(opened, others, seed=seed, advance=advance)
    if out:
        from darklens.files import write_json

        write_json(out, found)
    for warning in found["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    print(report.summary(found))
    return SOME_INPUTS_BAD if found["warnings"] else 0


@app.command
def recipes() -> int:
    """List the built-in recipes."""
    from darklens.training import recipe

    _list_described((name, recipe.get(name).description) for name in recipe.names())
    return 0


@app.command
def populations() -> int:
    """List the built-in populations."""
    from darklens.simulate import populations as known

    _list_described((name, known.get(name).description) for name in known.names())
    return 0


@app.command
def models() -> int:
    """List the systems that a recipe's `model.kind` can name, what they take and give, and the trained ones."""
    from darklens.bundle import Bundle, shipped
    from darklens.models.zoo import descriptions

    _list_described(iter(descriptions().items()))
    print("\nTrained and shipped, to be named in place of a run folder:")
    _list_described((name, Bundle.load(name).card) for name in shipped())
    return 0


@config_app.command
def show(
    recipe: Recipe,
    *overrides: Annotated[str, Parameter(help="Changes such as `stages.0.epochs=5`.")],
) -> int:
    """Print a recipe with all its defaults and overrides, as YAML that `train` takes."""
    from darklens.config import dump
    from darklens.training import recipe as recipes

    print(dump(recipes.get(recipe, overrides)), end="")
    return 0


@config_app.command
def schema() -> int:
    """Print the JSON schema of recipes, for editors."""
    import json

    from darklens.training.recipe import Recipe as RecipeModel

    print(json.dumps(RecipeModel.model_json_schema(), indent=2))
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that the top-level help states."""
    # torch's threads wait by spinning unless told otherwise before it is imported; beside another busy process that
    # made a training step 1.7 times as long (docs/decisions/0003-threads-and-memory.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except (DarklensError, CycloptsError) as error:
        if debug:
            raise
        _complain(" ".join(str(error).split()))
        code = getattr(error, "exit_code", ConfigError.exit_code)
    except KeyboardInterrupt:
        _complain("Interrupted; nothing half-written was left. Give the command again (train: with --resume) to go on.")
        code = 130
    except Exception as error:
        if debug:
            raise
        _complain(f"Unexpected {type(error).__name__}: {error}. Please report it with the output of --debug.")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _complain(sentence: str) -> None:
    print(f"darklens: {sentence}", file=sys.stderr)


def _list_problems(problems: list[str]) -> int:
    for problem in problems:
        _complain(problem)
    return SOME_INPUTS_BAD if problems else 0


def _list_described(rows: Iterator[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, description in rows:
        table.add_row(f"[bold]{name}[/]", description)
    Console().print(table)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)


if __name__ == "__main__":
    main()
