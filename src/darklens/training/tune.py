"""A hyperparameter search, which can be interrupted at any time.

STUDY/study.json       the search space and the data
STUDY/study.sqlite3    Optuna's record of all trials
STUDY/trials/DIGEST/   run folder of each trial
STUDY/trials.csv       one row per trial
STUDY/best.yaml        recipe of the best trial so far, for `train`
"""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from darklens import config, rng
from darklens.bundle.contract import Contract
from darklens.data.store import Store, prepare_folder
from darklens.devices import require_device
from darklens.errors import ConfigError, DivergedError, InputError
from darklens.files import locked, read_json, write_json, write_text
from darklens.training import search_space
from darklens.training.epoch_metrics import EpochMetrics, read_rows
from darklens.training.processes import rank_from
from darklens.training.recipe import Recipe, get
from darklens.training.run import train
from darklens.training.sources import source_of
from darklens.training.trials import Metric, Trial, best_of, write_table

Pruner = Literal["median", "hyperband", "none"]
_INDEX, _RECORD = "study.json", "study.sqlite3"


def tune(
    recipe: str,
    overrides: tuple[str, ...],
    space: search_space.Space,
    store: Store | None,
    out: Path,
    *,
    trials: int,
    metric: Metric = "val_loss",
    pruner: Pruner = "median",
    prune_after: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_trial: Callable[[Trial, Trial | None], None] = lambda _, __: None,
) -> list[Trial]:
    """Run trials with settings from a search space until there are `trials`, and write the recipe of the best.

    The same validation images evaluate every trial. A call on an existing folder continues its search.

    Args:
        recipe: Name or file.
        overrides: Overrides of the recipe for all trials.
        space: The search space; if empty, learning rate and weight decay of the last stage.
        store: Training images; None if the recipe simulates them.
        out: Folder to write.
        trials: Total number of trials, including those of earlier calls.
        metric: `val_loss`, which is minimised, or `val_auc`, which is maximised.
        pruner: Trials to stop early: those worse than the median at an epoch, those of Hyperband, or none.
        prune_after: Complete trials before the median pruner stops any.
        seed: Random seed of the search and of every training.
        device: As for `train`.
        on_trial: Called after each trial with it and the best so far.

    Raises:
        ConfigError: If Optuna is missing or a setting is wrong.
        InputError: If `out` contains another search.
    """
    base = search_space.checked_recipe(recipe, overrides, space)
    if not space:
        space = search_space.default_space(base)
    if metric == "val_auc" and base.stages[-1].task != "classify":
        raise ConfigError(f"--metric val_auc: {base.name} does not classify; omit the option.")
    if rank_from(os.environ).world_size > 1:
        raise ConfigError("tune runs in one process; start it without torchrun or srun.")
    device = require_device(device)
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
        for interrupted in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(interrupted.number, state=optuna.trial.TrialState.FAIL)
        while (done := sum(trial.state != "failed" for trial in _trials_of(study))) < trials:
            # A seed per trial, so that a continued search makes the same trials as an uninterrupted one.
            study.sampler = optuna.samplers.TPESampler(seed=rng.integer_seed(seed, "tune", done) % 2**32)
            _run(optuna, study, recipe, overrides, space, store, out, metric, seed, device)
            results = _trials_of(study)
            _write(out, results, recipe, overrides, metric)
            on_trial(results[-1], best_of(results, metric))
        return _trials_of(study)


def _run(
    optuna: Any,
    study: Any,
    recipe: str,
    overrides: tuple[str, ...],
    space: search_space.Space,
    store: Store | None,
    out: Path,
    metric: Metric,
    seed: int,
    device: torch.device | str,
) -> None:
    """Run one trial and record its result in the study."""
    state = optuna.trial.TrialState
    trial = study.ask()
    try:
        values = search_space.suggested(space, trial)
        trial_recipe = get(recipe, [*overrides, *(f"{key}={text}" for key, text in values.items())])
        folder = out / "trials" / config.digest(trial_recipe)[:16]
        value = _value(trial_recipe, trial, store, folder, metric, seed, device)
    except _Pruned as pruned:
        trial.set_user_attr("problem", str(pruned))
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


class _Pruned(Exception):
    """A trial is stopped early."""


def _value(
    recipe: Recipe,
    trial: Any,
    store: Store | None,
    folder: Path,
    metric: Metric,
    seed: int,
    device: torch.device | str,
) -> float:
    """Train a recipe, or continue the training of a killed trial, and return the metric of its best epoch."""
    last = len(recipe.stages) - 1
    reported: set[int] = set()

    def report(metrics: EpochMetrics) -> None:
        if metrics.stage != last or metrics.epoch in reported:
            return
        reported.add(metrics.epoch)
        value = getattr(metrics, metric)
        trial.report(value, metrics.epoch)
        # After the last epoch pruning saves nothing.
        if metrics.epoch + 1 < recipe.stages[last].epochs and trial.should_prune():
            raise _Pruned(f"{metric} {value:.4g} in epoch {metrics.epoch + 1}, worse than others")

    for row in read_rows(folder / "metrics.csv"):
        report(EpochMetrics.from_row(row))
    if not (folder / "bundle" / "bundle.json").exists():
        try:
            train(recipe, store, folder, seed=seed, resume=True, device=device, on_epoch=report)
        except DivergedError as error:
            raise _Pruned(str(error)) from None
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
        raise InputError(f"{out / _RECORD} cannot be used ({error}); remove it to start again.") from None


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Create the folder of the search, or check that it is that of the same search."""
    if (out / _INDEX).exists():
        recorded = read_json(out / _INDEX)
        for name, value in identity.items():
            if recorded.get(name) != value:
                raise InputError(
                    f"{out} contains a search with another {name.removesuffix('_sha256')}; choose another --out, or "
                    "repeat the same command with more --trials."
                )
        return
    prepare_folder(out)
    write_json(out / _INDEX, identity)


def _trials_of(study: Any) -> list[Trial]:
    return [_to_trial(trial) for trial in study.get_trials(deepcopy=False)]


def _to_trial(trial: Any) -> Trial:
    """Convert a trial of Optuna."""
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


def _write(out: Path, trials: list[Trial], recipe: str, overrides: tuple[str, ...], metric: Metric) -> None:
    """Write the table and the recipe of the best trial."""
    write_table(out / "trials.csv", trials, metric)
    best = best_of(trials, metric)
    if best:
        settings = [f"{key}={value}" for key, value in best.settings.items()]
        write_text(out / "best.yaml", config.dump(get(recipe, [*overrides, *settings])))
