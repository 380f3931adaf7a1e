"""Commands that make trained systems and hand them on."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import Model, Recipe, StorePath, app, progress


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

    Several processes, one a GPU, train it together when `torchrun` or `srun` starts them: `torchrun --nproc-per-node 4
    -m darklens.cli train ...`. The recipe's batch is shared out among them.

    Example without data: `darklens train resnet_simple --out runs/endless data.kind=stream
    data.population=common-test-i`
    """
    from darklens.data.store import Store
    from darklens.training import recipe as recipes
    from darklens.training.processes import joined
    from darklens.training.run import fits_for
    from darklens.training.run import train as run

    with joined() as processes:
        chosen_recipe, store = processes.agree(lambda: (recipes.get(recipe, overrides), Store(data) if data else None))
        with progress("Fitting", len(store) if store else 0) as advance:
            processes.first(lambda: fits_for(chosen_recipe, store, advance=advance))
        bundle = run(chosen_recipe, store, out, seed=seed, resume=resume)
        if not processes.leads:
            return 0
    contract = bundle.contract
    chosen = ", ".join(
        f"epoch {value + 1:.0f}" if name == "epoch" else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in contract.validation.items()
    )
    print(
        f"{contract.recipe}: {contract.parameters:,} parameters, "
        f"{contract.provenance['train_seconds']:.0f} s ({chosen})"
    )
    print(f"Bundle in {out / 'bundle'}")
    return 0


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
    method: Annotated[
        Literal["temperature", "isotonic"],
        Parameter(
            help="isotonic fits a rising curve for each class besides: for a network that is surest where it is wrong. "
            "Takes 600 images of each class; such a model is not exported, and is no member of an ensemble."
        ),
    ] = "temperature",
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
    with progress("Calibrating", len(opened)) as advance:
        bundle = calibrate_on(
            Bundle.load(model), opened, seed=seed, method=method, workers=usable_cores(), advance=advance
        )
    bundle.save(out)
    assert bundle.contract.calibration is not None
    print(f"Temperature {bundle.contract.calibration.temperature:.3g}; bundle in {out}")
    return 0


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
