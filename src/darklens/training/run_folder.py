"""The folder of a training run: who may write it, and whether a run can continue in it."""

import socket
from contextlib import ExitStack
from pathlib import Path
from pickle import UnpicklingError

import torch

import darklens
from darklens import config, provenance
from darklens.data.store import prepare_folder
from darklens.errors import ConfigError, InputError
from darklens.files import locked, read_json, write_json, write_text, writing
from darklens.targets import check_targets
from darklens.training.recipe import Recipe
from darklens.training.sources import Source

STATE = "state.json"


def require_shared(out: Path) -> None:
    """Raise InputError if this process does not see the run folder that another one has created."""
    if not (out / STATE).exists():
        raise InputError(
            f"{out} does not exist on {socket.gethostname()}; it must be on a file system that all processes share."
        )


def lock_run(out: Path, stack: ExitStack) -> None:
    """Create the run folder and lock it until the stack ends: the checkpoints of two processes would mix."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(out))


def claim_run(out: Path, recipe: Recipe, source: Source, seed: int, resume: bool) -> None:
    """Create the run folder, or check that it is that of the run to resume. Record the commit of each start."""
    state = {"data_sha256": source.identity()["sha256"], "seed": seed, "version": darklens.__version__}
    text = config.dump(recipe)
    if require_new_run(out, resume=resume):
        write_text(out / "config.yaml", text)
        write_json(out / STATE, state | {"commits": [provenance.commit()]})
        return
    other = _recipe_of_run(out / "config.yaml")
    if other is None:
        raise InputError(f"{out / 'config.yaml'} is not a recipe of this version; choose another --out.")
    if other != recipe:
        raise InputError(
            f"{out} contains a run of another recipe: {config.difference(other, recipe)}. Pass the same recipe and "
            "overrides (its config.yaml has them all), or choose another --out."
        )
    recorded = read_json(out / STATE)
    if any(recorded.get(name) != value for name, value in state.items()):
        raise InputError(f"{out} contains a run with other data, seed or version; choose another --out.")
    commits = dict.fromkeys([*recorded.get("commits", []), provenance.commit()])
    write_json(out / STATE, state | {"commits": list(commits)})


def require_new_run(out: Path, *, resume: bool) -> bool:
    """Check that a training can write the run folder `out`; return whether the run is new.

    Raises:
        InputError: If `out` contains a run and `resume` is not set, contains something else, or cannot be written.
    """
    check_targets(folders=[out], files=[out / name for name in ("config.yaml", STATE, "metrics.csv")])
    if resume and (out / STATE).exists():
        return False
    if (out / "config.yaml").exists():
        raise InputError(f"{out} already contains a run; add --resume to continue it, or choose another --out.")
    prepare_folder(out)
    return True


def _recipe_of_run(path: Path) -> Recipe | None:
    """Return the recipe of a run, with defaults for settings added since; None if the file is not a recipe."""
    try:
        return config.load(Recipe, path)
    except ConfigError:
        return None


def next_epoch(last: Path) -> int:
    """Return the epoch after that of a checkpoint, counted from 0.

    Raises:
        InputError: If the checkpoint is damaged.
    """
    try:
        return int(torch.load(last, map_location="cpu", weights_only=True)["epoch"]) + 1 if last.exists() else 0
    except (RuntimeError, EOFError, UnpicklingError, KeyError, OSError):
        raise InputError(f"{last} is damaged; remove {last.parent} to repeat this stage with --resume.") from None
