"""Commands that train, combine, calibrate and export models."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import Device, Model, Recipe, StorePath, app, check_outputs, progress


@app.command
def train(
    recipe: Recipe,
    *overrides: Annotated[
        str, Parameter(help="Overrides of the recipe, such as `stages.0.epochs=5` or `data.preprocess.crop=96`.")
    ],
    data: Annotated[
        Path | None, Parameter(help="Store of training images; omit it if `data.kind` is `stream`.")
    ] = None,
    out: Annotated[Path, Parameter(help="Run folder to write.")],
    seed: Annotated[
        int, Parameter(help="Random seed of initial weights, validation split, batch order and augmentation.")
    ] = 0,
    resume: Annotated[bool, Parameter(negative="", help="Continue an interrupted run.")] = False,
    device: Device = "cpu",
) -> int:
    """Train a recipe on a store, or on images simulated during training. A validation split selects the best epoch.

    Example: `darklens train sis_autoencoder2 --data stores/train --out runs/sis stages.1.epochs=30`

    Example without a store: `darklens train resnet_simple --out runs/stream data.kind=stream
    data.population=common-test-i`

    Distributed training with one process per GPU: `torchrun --nproc-per-node 4 -m darklens.cli train ... --device
    cuda`, or `srun`. The processes share each batch of the recipe.
    """
    from darklens.data.store import Store
    from darklens.training import recipe as recipes
    from darklens.training.processes import process_group
    from darklens.training.run import fits_for
    from darklens.training.run import train as run

    with process_group(device) as processes:
        processes.run_on_main(lambda: _check_run(out, resume, recipe, data))
        chosen_recipe, store = processes.run_on_all(
            lambda: (recipes.get(recipe, overrides), Store(data) if data else None)
        )
        with progress("Fitting", len(store) if store else 0) as advance:
            processes.run_on_main(lambda: fits_for(chosen_recipe, store, device=device, advance=advance))
        bundle = run(chosen_recipe, store, out, seed=seed, resume=resume, device=device)
        if not processes.is_main:
            return 0
    contract = bundle.contract
    selected = ", ".join(
        f"epoch {value + 1:.0f}" if name == "epoch" else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in contract.validation.items()
    )
    print(
        f"{contract.recipe}: {contract.parameters:,} parameters, "
        f"{contract.provenance['train_seconds']:.0f} s ({selected})"
    )
    print(f"Bundle in {out / 'bundle'}")
    return 0


def _check_run(out: Path, resume: bool, recipe: str, data: Path | None) -> None:
    from darklens.training.run_folder import require_new_run

    check_outputs(folders=[out], inputs=[recipe], stores=[data])
    require_new_run(out, resume=resume)


@app.command
def ensemble(
    models: Annotated[list[Path], Parameter(help="Two or more run folders, bundle folders or shipped models.")],
    *,
    out: Annotated[Path, Parameter(help="Bundle folder to write; it contains copies of the weights of all members.")],
) -> int:
    """Combine several models into one that averages their probabilities.

    It has no prediction sets or selective risks until `darklens calibrate` computes them from new images.

    Example: `darklens ensemble runs/seed0 runs/seed1 runs/seed2 --out runs/ensemble`
    """
    from darklens.bundle import Bundle
    from darklens.bundle.combine import ensemble as average
    from darklens.bundle.storage import FILES

    check_outputs(folders=[out], files=[out / name for name in FILES], models=models)
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
            help="temperature: divide the logits by one number. isotonic: also fit a monotonic function per class, for "
            "models that are most confident where they are wrong; needs 600 images per class, and such a model cannot "
            "be exported or be part of an ensemble."
        ),
    ] = "temperature",
    seed: Annotated[int, Parameter(help="Random seed of the split of the images into two halves.")] = 0,
    fallback: Annotated[
        str | None,
        Parameter(
            help="Shipped model that classifies images which this one doubts, such as lens_residual_robust, or `none`; "
            "by default that of MODEL."
        ),
    ] = None,
    checks: Annotated[
        str | None,
        Parameter(
            help="Shipped model whose fits check the classes of a network that takes images, such as lens_residual, or "
            "`none`; by default that of MODEL."
        ),
    ] = None,
    device: Device = "cpu",
) -> int:
    """Calibrate a model on new images: probabilities, prediction sets, selective risk, out-of-distribution threshold.

    `train` does this at its end with the validation images. The store must not contain training images of the model.

    Example: `darklens calibrate runs/ensemble stores/held-out --out runs/ensemble-calibrated`
    """
    from darklens.bundle import Bundle
    from darklens.bundle.storage import FILES
    from darklens.data.store import Store
    from darklens.evaluation.calibrate import calibrate_on
    from darklens.executors import usable_cores

    check_outputs(folders=[out], files=[out / name for name in FILES], stores=[store], models=[model])
    images = Store(store)
    with progress("Calibrating", len(images)) as advance:
        loaded = Bundle.load(model, device=device)
        loaded = loaded.with_companions(
            fallback="" if fallback == "none" else fallback, checked_by="" if checks == "none" else checks
        )
        bundle = calibrate_on(loaded, images, seed=seed, method=method, workers=usable_cores(), advance=advance)
    bundle.save(out)
    assert bundle.contract.calibration is not None
    print(f"Temperature {bundle.contract.calibration.temperature:.3g}; bundle in {out}")
    return 0


@app.command
def export(
    model: Model,
    *,
    onnx: Annotated[
        Path, Parameter(help="ONNX file to write; its input is raw images, its output class probabilities.")
    ],
) -> int:
    """Export a model to ONNX and check that ONNX Runtime gives the probabilities of PyTorch within 1e-4.

    Needs `pip install 'darklens[onnx]'`.

    Example: `darklens export runs/sis --onnx sis.onnx`
    """
    from darklens.bundle import Bundle
    from darklens.export import export_onnx
    from darklens.files import size_in_words

    check_outputs(files=[onnx], models=[model])
    difference = export_onnx(Bundle.load(model), onnx)
    print(f"{onnx}: {size_in_words(onnx.stat().st_size)}, probabilities within {difference:.1g} of PyTorch")
    return 0
