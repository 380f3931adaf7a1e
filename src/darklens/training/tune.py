"""A search for the best settings of a recipe, which can be interrupted at any time.

STUDY/study.json       what is searched, on which data
STUDY/study.sqlite3    Optuna's record of all trials
STUDY/trials/DIGEST/   run folder of each trial
STUDY/trials.csv       one row a trial
STUDY/best.yaml        recipe of the best trial so far, for `train`
"""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from darklens import config, rng
from darklens.bundle.contract import Contract
from darklens.data.store import Store, prepare_folder
from darklens.errors import ConfigError, InputError
from darklens.files import locked, read_json, write_json, write_text
from darklens.training import space as spaces
from darklens.training.processes import place_of
from darklens.training.recipe import Recipe, get
from darklens.training.rows import EpochMetrics, read_rows
from darklens.training.run import train
from darklens.training.sources import source_of
from darklens.training.trials import Metric, Trial, best_of, write_table

Pruner = Literal["median", "hyperband", "none"]
_INDEX, _RECORD = "study.json", "study.sqlite3"


def tune(
    recipe: str,
    overrides: tuple[str, ...],
    space: spaces.Space,
    store: Store | None,
    out: Path,
    *,
    trials: int,
    metric: Metric = "val_loss",
    pruner: Pruner = "median",
    prune_after: int = 5,
    seed: int = 0,
    tell: Callable[[Trial, Trial | None], None] = lambda _, __: None,
) -> list[Trial]:
    """Try settings of a recipe until there are `trials` trials, and write the best recipe; or go on with such a search.

    Trials are judged by the validation part of the training images alone, which is the same for all.

    Args:
        recipe: Name or file.
        overrides: Changes to it that all trials have.
        space: What is searched.
        store: Training images; None if the recipe simulates them.
        out: Folder to write.
        trials: Number of trials in the end, counting those of earlier calls.
        metric: `val_loss`, to be small, or `val_auc`, to be large.
        pruner: Which trials are stopped early: those below the median at an epoch, Hyperband's, or none.
        prune_after: Whole trials before any is stopped; Hyperband has a rule of its own.
        seed: Of the search and of every training.
        tell: Called with each trial that has ended, and the best so far.

    Raises:
        ConfigError: If Optuna is missing or a setting is wrong.
        InputError: If `out` holds another search.
    """
    base = spaces.check(recipe, overrides, space)
    if not space:
        space = spaces.default(base)
    if metric == "val_auc" and base.stages[-1].task != "classify":
        raise ConfigError(f"--metric val_auc: {base.name} does not classify; leave it out.")
    if place_of(os.environ).world > 1:
        raise ConfigError("tune runs in one process; start it without torchrun or srun.")
    optuna = _optuna()
    data = source_of(base.data, base.stages, store, seed=seed).identity()["sha256"]
    identity = {
        "schema": 1,
        "recipe": config.digest(base),
        "space": {key: dimension.model_dump(mode="json") for key, dimension in space.items()},
        "metric": metric,
        "pruner": pruner,
        "prune_after": prune_after,
        "seed": seed,
        "data_sha256": data,
    }
    _claim(out, identity)
    with locked(out / "lock"):
        study = _study(optuna, out, metric, _pruner(optuna, pruner, prune_after, base))
        for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        while (done := _n_counted(study)) < trials:
            # A seed for each, so that a search that goes on makes the trials that it would have made.
            study.sampler = optuna.samplers.TPESampler(seed=rng.integer_seed(seed, "tune", done) % 2**32)
            _run(optuna, study, recipe, overrides, space, store, out, metric, seed)
            found = [_ended(trial) for trial in study.get_trials(deepcopy=False)]
            _write(out, found, recipe, overrides, metric)
            tell(found[-1], best_of(found, metric))
        return [_ended(trial) for trial in study.get_trials(deepcopy=False)]


def _run(
    optuna: Any,
    study: Any,
    recipe: str,
    overrides: tuple[str, ...],
    space: spaces.Space,
    store: Store | None,
    out: Path,
    metric: Metric,
    seed: int,
) -> None:
    """Make one trial and tell the study how it ended."""
    state = optuna.trial.TrialState
    trial = study.ask()
    try:
        chosen = get(recipe, [*overrides, *(f"{key}={text}" for key, text in spaces.chosen(space, trial).items())])
        value = _value(chosen, trial, store, out / "trials" / config.digest(chosen)[:16], metric, seed)
    except _Stopped as stopped:
        trial.set_user_attr("problem", str(stopped))
        study.tell(trial, state=state.PRUNED)
    except ConfigError as error:
        trial.set_user_attr("problem", str(error))
        trial.set_user_attr("refused", True)
        study.tell(trial, state=state.PRUNED)
    except BaseException:
        study.tell(trial, state=state.FAIL)
        raise
    else:
        study.tell(trial, value)


class _Stopped(Exception):
    """A trial is not worth finishing."""


def _value(chosen: Recipe, trial: Any, store: Store | None, folder: Path, metric: Metric, seed: int) -> float:
    """Train one recipe, or go on with a killed trial's training, and return the metric of its chosen epoch."""
    last = len(chosen.stages) - 1
    told: set[int] = set()

    def watch(done: EpochMetrics) -> None:
        if not math.isfinite(done.train_loss) or not math.isfinite(done.val_loss):
            raise _Stopped(f"the loss was not finite in epoch {done.epoch + 1}")
        if done.stage != last or done.epoch in told:
            return
        told.add(done.epoch)
        value = getattr(done, metric)
        trial.report(value, done.epoch)
        # The last epoch is trained by now, and its trial is worth keeping.
        if done.epoch + 1 < chosen.stages[last].epochs and trial.should_prune():
            raise _Stopped(f"{metric} {value:.4g} in epoch {done.epoch + 1}, worse than others")

    for row in read_rows(folder / "metrics.csv"):
        watch(EpochMetrics.of(row))
    if not (folder / "bundle" / "bundle.json").exists():
        train(chosen, store, folder, seed=seed, resume=True, watch=watch)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    validation = Contract.model_validate(read_json(folder / "bundle" / "bundle.json")).validation
    return validation[metric]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError('A search needs Optuna: pip install "darklens[tune]".') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _pruner(optuna: Any, name: Pruner, after: int, recipe: Recipe) -> Any:
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(max_resource=recipe.stages[-1].epochs)
    return optuna.pruners.MedianPruner(n_startup_trials=after) if name == "median" else optuna.pruners.NopPruner()


def _study(optuna: Any, out: Path, metric: Metric, pruner: Any) -> Any:
    from sqlalchemy import URL

    try:
        return optuna.create_study(
            storage=URL.create("sqlite", database=str(out.resolve() / _RECORD)).render_as_string(),
            study_name="darklens",
            direction="minimize" if metric == "val_loss" else "maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    except optuna.exceptions.OptunaError as error:
        raise InputError(f"{out / _RECORD} cannot be used ({error}); remove it to start anew.") from None


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Make `out` this search's folder, or recognise it as such."""
    if (out / _INDEX).exists():
        held = read_json(out / _INDEX)
        for name, value in identity.items():
            if held.get(name) != value:
                raise InputError(
                    f"{out} holds a search with another {name.removesuffix('_sha256')}; choose another --out, or give "
                    "the same command with more --trials."
                )
        return
    prepare_folder(out)
    write_json(out / _INDEX, identity)


def _n_counted(study: Any) -> int:
    return sum(_ended(trial).state != "failed" for trial in study.get_trials(deepcopy=False))


def _ended(trial: Any) -> Trial:
    """Return what a table says of one of Optuna's trials."""
    name = trial.state.name
    state: Any = (
        "refused" if trial.user_attrs.get("refused") else {"COMPLETE": "complete", "PRUNED": "pruned"}.get(name)
    )
    finite = [v for _, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)]
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    return Trial(
        number=trial.number,
        state=state or "failed",
        value=trial.value if name == "COMPLETE" else (finite[-1] if finite else None),
        epochs=len(trial.intermediate_values),
        seconds=round(seconds, 1),
        settings=dict(trial.params),
        problem=trial.user_attrs.get("problem", ""),
    )


def _write(out: Path, found: list[Trial], recipe: str, overrides: tuple[str, ...], metric: Metric) -> None:
    """Write the table, and the best recipe."""
    write_table(out / "trials.csv", found, metric)
    best = best_of(found, metric)
    if best:
        changed = [f"{key}={value}" for key, value in best.settings.items()]
        write_text(out / "best.yaml", config.dump(get(recipe, [*overrides, *changed])))
