"""The command that searches for the best settings of a recipe."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import SOME_INPUTS_BAD, Positive, Recipe, app


@app.command
def tune(
    recipe: Recipe,
    *space: Annotated[
        str,
        Parameter(
            help="What to search: `a.b=low..high`, `a.b=log:1e-5..1e-2` or, in quotes, `'a.b={x,y,z}'`; with `a.b=c` "
            "all trials have c. By default the last stage's rate and weight decay."
        ),
    ],
    data: Annotated[Path | None, Parameter(help="Store to train on; none if data.kind is stream.")] = None,
    out: Annotated[Path, Parameter(help="Folder of the search: trials.csv, best.yaml, tune.png, the trials' runs.")],
    trials: Annotated[
        Positive, Parameter(help="Number of trials in the end, those of an interrupted call included.")
    ] = 20,
    metric: Annotated[
        Literal["val_loss", "val_auc"], Parameter(help="Of the images that training holds out.")
    ] = "val_loss",
    pruner: Annotated[
        Literal["median", "hyperband", "none"],
        Parameter(
            help="Which trials are stopped early: those worse than the median at an epoch, Hyperband's, or none."
        ),
    ] = "median",
    prune_after: Annotated[Positive, Parameter(help="Whole trials before the median stops any.")] = 5,
    space_file: Annotated[
        Path | None,
        Parameter(name="--space", help="YAML file of keys and ranges or lists, beside or in place of words."),
    ] = None,
    seed: Annotated[int, Parameter(help="Of the search and of every training.")] = 0,
) -> int:
    """Search for the best settings of a recipe; given again, an interrupted search goes on.

    Needs `pip install 'darklens[tune]'`. Each trial is a training of its own, judged by the part of the training store
    that it holds out; best.yaml is a recipe for `train`.

    Example: `darklens tune resnet_simple --data stores/train --out tuned stages.0.optimiser.lr=log:1e-4..1e-1
    'data.augment.kind={none,dihedral}'`
    """
    from darklens.data.store import Store
    from darklens.files import atomic_path
    from darklens.report.figures import to_png
    from darklens.report.search import history
    from darklens.training import space as spaces
    from darklens.training.trials import Trial
    from darklens.training.tune import tune as search

    found, overrides = spaces.parse(space, space_file)

    def tell(trial: Trial, best: Trial | None) -> None:
        value = "-" if trial.value is None else f"{trial.value:.4g}"
        settings = ", ".join(f"{key}={text}" for key, text in trial.settings.items())
        so_far = "" if best is None else f", best {best.value:.4g}"
        print(f"Trial {trial.number}: {trial.state}, {metric} {value}{so_far} ({settings})", flush=True)

    ended = search(
        recipe,
        overrides,
        found,
        Store(data) if data else None,
        out,
        trials=trials,
        metric=metric,
        pruner=pruner,
        prune_after=prune_after,
        seed=seed,
        tell=tell,
    )
    with atomic_path(out / "tune.png") as temporary:
        temporary.write_bytes(to_png(history(ended, metric)))
    refused = [trial for trial in ended if trial.state == "refused"]
    for trial in refused:
        print(f"darklens: Trial {trial.number} was refused: {trial.problem}", file=sys.stderr)
    if (out / "best.yaml").exists():
        print(f"Best recipe in {out / 'best.yaml'}")
    return SOME_INPUTS_BAD if refused else 0
