"""The command that tunes hyperparameters."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import PARTIAL_SUCCESS, Device, Positive, Recipe, app, check_outputs, print_error


@app.command
def tune(
    recipe: Recipe,
    *space: Annotated[
        str,
        Parameter(
            help="Search space: `a.b=low..high`, `a.b=log:1e-5..1e-2` or, in quotes, `'a.b={x,y,z}'`; `a.b=c` fixes a "
            "value. By default the learning rate and the weight decay of the last stage."
        ),
    ],
    data: Annotated[
        Path | None, Parameter(help="Store of training images; omit it if `data.kind` is `stream`.")
    ] = None,
    out: Annotated[Path, Parameter(help="Folder for trials.csv, best.yaml, tune.png and the runs of all trials.")],
    trials: Annotated[
        Positive, Parameter(help="Total number of trials, including those of an interrupted search.")
    ] = 20,
    metric: Annotated[Literal["val_loss", "val_auc"], Parameter(help="Validation metric to optimise.")] = "val_loss",
    pruner: Annotated[
        Literal["median", "hyperband", "none"],
        Parameter(help="Early stopping of trials: those worse than the median at the same epoch, Hyperband, or none."),
    ] = "median",
    prune_after: Annotated[Positive, Parameter(help="Complete trials before the median pruner stops any.")] = 5,
    space_file: Annotated[
        Path | None,
        Parameter(name="--space", help="YAML file with the search space: keys with ranges or lists."),
    ] = None,
    seed: Annotated[int, Parameter(help="Random seed of the search and of each training.")] = 0,
    device: Device = "cpu",
) -> int:
    """Tune the hyperparameters of a recipe.

    Each trial trains the recipe with one choice of settings and evaluates it on the validation images. best.yaml is a
    recipe for `train`. To continue an interrupted search, repeat the command. Needs `pip install 'darklens[tune]'`.

    Example: `darklens tune resnet_simple --data stores/train --out tuned stages.0.optimiser.lr=log:1e-4..1e-1
    'data.augment.kind={none,dihedral}'`
    """
    from darklens.data.store import Store
    from darklens.files import write_bytes
    from darklens.report.figures import to_png
    from darklens.report.search import history
    from darklens.training.search_space import parse
    from darklens.training.trials import Trial
    from darklens.training.tune import tune as search

    written = ("study.json", "study.sqlite3", "trials.csv", "best.yaml", "tune.png", "lock")
    check_outputs(
        folders=[out],
        files=[out / name for name in written],
        inputs=[recipe, *filter(None, [space_file])],
        stores=[data],
    )
    search_space, overrides = parse(space, space_file)

    def report(trial: Trial, best: Trial | None) -> None:
        value = "-" if trial.value is None else f"{trial.value:.4g}"
        settings = ", ".join(f"{key}={text}" for key, text in trial.settings.items())
        best_value = "" if best is None else f", best {best.value:.4g}"
        print(f"Trial {trial.number}: {trial.state}, {metric} {value}{best_value} ({settings})", flush=True)

    results = search(
        recipe,
        overrides,
        search_space,
        Store(data) if data else None,
        out,
        trials=trials,
        metric=metric,
        pruner=pruner,
        prune_after=prune_after,
        seed=seed,
        device=device,
        on_trial=report,
    )
    write_bytes(out / "tune.png", to_png(history(results, metric)))
    invalid = [trial for trial in results if trial.state == "refused"]
    for trial in invalid:
        print_error(f"Trial {trial.number} has invalid settings: {trial.problem}")
    if (out / "best.yaml").exists():
        print(f"Best recipe in {out / 'best.yaml'}")
    return PARTIAL_SUCCESS if invalid else 0
