"""A training from start to bundle. The only place where a Trainer is made.

RUN/config.yaml            the recipe with all its defaults and overrides
RUN/metrics.csv            one row an epoch
RUN/checkpoints/STAGE/     last.ckpt and best.ckpt, for resuming only
RUN/bundle/                the result
"""

import logging
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from rich.console import Console
from torch import nn

import darklens
from darklens import config, provenance, rng
from darklens.bundle import Bundle, Output
from darklens.compilation import compile_network
from darklens.contract import Contract
from darklens.data.store import Store, prepare_folder
from darklens.errors import ConfigError, InputError
from darklens.evaluation.calibrate import LabelledOutputs, calibrate
from darklens.executors import usable_cores
from darklens.files import read_json, write_json, write_text
from darklens.fit.cache import FitCache, cached_fits, fit_settings_of
from darklens.fit.features import FitFeatures
from darklens.kernels.library import library
from darklens.memory import keep_freed_memory
from darklens.models.zoo import build, count_parameters
from darklens.training.average import RunningMean
from darklens.training.learner import Learner
from darklens.training.normalisation import synchronised
from darklens.training.precision import precision_of
from darklens.training.processes import Processes, joined
from darklens.training.recipe import Recipe, Stage
from darklens.training.rows import EpochMetrics, EpochRows, read_rows
from darklens.training.sources import Loader, Source, source_of

_STATE = "state.json"
_OOD_REFERENCE_IMAGES = 4000  # training images: enough for the covariance of 500 features


def train(
    recipe: Recipe,
    store: Store | None,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    watch: Callable[[EpochMetrics], None] = lambda _: None,
) -> Bundle:
    """Train a recipe on a store; write the run folder and return its bundle.

    Under torchrun or Slurm's `srun` all processes call it and train together; see `darklens.training.processes`.

    Args:
        recipe: What to train and how.
        store: Training images, a part of which is held out for validation; None if the recipe simulates them.
        out: Run folder to write.
        seed: Decides weights, split, order and augmentation.
        resume: Go on with an interrupted run in `out`, from the last finished epoch.
        watch: Called after each epoch; what it raises ends the training. Not for several processes.

    Raises:
        InputError: If `out` is taken and `resume` is not set, or holds a run of another recipe, data or seed.
    """
    with joined() as processes:
        _quiet()
        keep_freed_memory()
        library()  # before the first step, of a run that goes on too
        fits = processes.in_turn(lambda: fits_for(recipe, store))
        source, network = processes.agree(lambda: _prepared(recipe, store, fits, seed, processes))
        processes.first(lambda: _claim(out, recipe, source, seed, resume))
        processes.agree(lambda: _require_seen(out))
        validation: dict[str, float] = {}
        for number, stage in enumerate(recipe.stages):
            if stage.task != "reconstruct" or recipe.pretrained is None:
                validation = _run_stage(network, recipe, stage, number, source, out, seed, processes, watch)
        processes.first(lambda: _finish(network, recipe, source, out, seed, validation, processes.place.world))
        return processes.agree(lambda: Bundle.load(out))


def _prepared(
    recipe: Recipe, store: Store | None, fits: FitCache | None, seed: int, processes: Processes
) -> tuple[Source, nn.Module]:
    """Return the images, and the network with the weights it starts from."""
    source = source_of(recipe.data, recipe.stages, store, seed=seed, fits=fits)
    _require_enough(recipe, source, processes.place.world)
    recipe.check_sizes(source.n_pixels)
    pl.seed_everything(rng.integer_seed(seed, "weights") % 2**32, verbose=False)
    network: nn.Module = build(
        recipe.model,
        n_pixels=recipe.data.preprocess.output_size(source.n_pixels),
        pixel_scale=source.pixel_scale * recipe.data.preprocess.bin,
        n_classes=len(source.classes),
    )
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    if recipe.pretrained is not None:
        _load_autoencoder(network, recipe, source.n_pixels)
    return source, synchronised(network) if processes.several else network


def _require_enough(recipe: Recipe, source: Source, world: int) -> None:
    """Check that every process has something of every batch, and of the validation images."""
    for i, stage in enumerate(recipe.stages):
        if source.batch_size(stage) < world:
            raise ConfigError(
                f"stages.{i}.batch_size: a batch of {source.batch_size(stage)} images cannot be shared by {world} "
                "processes; it is over all of them, so raise it or start fewer."
            )
    if source.validation_images < world:
        raise ConfigError(f"{source.validation_images} validation images cannot be shared by {world} processes.")


def _finish(
    network: nn.Module,
    recipe: Recipe,
    source: Source,
    out: Path,
    seed: int,
    validation: dict[str, float],
    world: int,
) -> None:
    """Calibrate the trained network and write its bundle."""
    seconds = sum(float(row["seconds"]) for row in read_rows(out / "metrics.csv"))
    contract = Contract(
        recipe=recipe.name,
        recipe_sha256=config.digest(recipe),
        model=recipe.model,
        classes=source.classes,
        n_pixels=source.n_pixels,
        pixel_scale=source.pixel_scale,
        preprocess=recipe.data.preprocess,
        parameters=count_parameters(network),
        data=source.identity(),
        validation=validation,
        provenance={
            "version": darklens.__version__,
            "commit": ", ".join(read_json(out / _STATE)["commits"]),
            "hardware": provenance.hardware(),
            "seed": seed,
            "train_seconds": round(seconds, 1),
            "train_images": source.train_images,
            **({"processes": world} if world > 1 else {}),
        },
    )
    bundle = Bundle(contract, network)
    if contract.task == "classify":
        bundle = _calibrated(bundle, source, recipe.stages, seed)
    bundle.save(out / "bundle")


def fits_for(
    recipe: Recipe, store: Store | None, *, advance: Callable[[int], None] = lambda _: None
) -> FitCache | None:
    """Return the fits of the store, made where they are missing, if the recipe's network takes fits.

    Args:
        recipe: What is to be trained.
        store: Its images, in whose folder fits are kept.
        advance: Called with the number of images just fitted.
    """
    settings = fit_settings_of(recipe.model)
    if settings is None or store is None or recipe.data.kind != "store":
        return None
    limit = None
    if recipe.data.n_per_class is not None:
        first = [np.flatnonzero(store.labels == label)[: recipe.data.n_per_class] for label in np.unique(store.labels)]
        limit = int(max(rows.max() for rows in first)) + 1
    return cached_fits(
        store,
        settings.population,
        backend=recipe.data.backend,
        centred=settings.centred,
        workers=usable_cores(),
        limit=limit,
        advance=advance,
    )


def _calibrated(bundle: Bundle, source: Source, stages: Sequence[Stage], seed: int) -> Bundle:
    """Calibrate on the validation images of the last stage, as they are stored: none is moved."""
    reference, held_out = source.typical(stages[-1], len(stages) - 1, _OOD_REFERENCE_IMAGES)
    name = "validation images, which chose the epoch"
    outputs = _outputs(bundle, held_out)
    return calibrate(bundle, outputs, reference=_outputs(bundle, reference), images=name, seed=seed)


def _outputs(bundle: Bundle, images: Loader) -> LabelledOutputs:
    outputs, labels = [], []
    for batch, own in images:
        outputs.append(bundle.output(batch if isinstance(batch, FitFeatures) else bundle.inputs_of(batch.numpy())))
        labels.append(own.numpy())
    return LabelledOutputs(
        Output(*(np.concatenate(parts) for parts in zip(*outputs, strict=True))), np.concatenate(labels)
    )


def _run_stage(
    network: nn.Module,
    recipe: Recipe,
    stage: Stage,
    number: int,
    source: Source,
    out: Path,
    seed: int,
    processes: Processes,
    watch: Callable[[EpochMetrics], None],
) -> dict[str, float]:
    """Train one stage, leave its chosen weights in `network`, and return their validation metrics."""
    part: nn.Module = network
    if stage.task == "reconstruct" and isinstance(child := getattr(network, "k_network", None), nn.Module):
        part = child
    if recipe.compile:
        compile_network(part)
    folder = out / "checkpoints" / f"stage{number}-{stage.task}"
    last = folder / "last.ckpt"
    # Not ModelCheckpoint's save_last, which writes only when the best changes.
    keep_best, keep_last = _checkpoint(folder, "best", monitor="val_loss"), _checkpoint(folder, "last", monitor=None)
    first_epoch = processes.agree(lambda: _next_epoch(last))
    rows = EpochRows(out / "metrics.csv", stage, number, watch, writes=processes.leads)
    rows.forget_from(first_epoch)
    trainer = pl.Trainer(
        max_epochs=stage.epochs,
        **processes.trainer_arguments(),
        precision=precision_of(recipe.precision),
        gradient_clip_val=stage.gradient_clip,
        callbacks=[
            *([RunningMean(stage.ema_decay)] if stage.ema_decay else []),
            *(rows, keep_best, keep_last),
            *([_EndAtOnce()] if processes.several else []),
            *([RichProgressBar(leave=False)] if Console().is_terminal else []),
        ],
        enable_progress_bar=Console().is_terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,
        logger=False,
    )
    learner = Learner(
        part,
        stage=stage,
        number=number,
        data=recipe.data,
        seed=seed,
        batch_size=source.batch_size(stage),
        processes=processes,
        fit_settings=fit_settings_of(recipe.model),
    )
    try:
        trainer.fit(
            learner,
            *source.loaders(stage, number, first_epoch, processes.part),
            ckpt_path=str(last) if first_epoch else None,
            weights_only=True,
        )
    except SystemExit:
        if not trainer.interrupted:  # Lightning's answer to Ctrl-C, without a word
            raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    chosen = last if stage.legacy_last_epoch else folder / "best.ckpt"
    state = torch.load(chosen, map_location="cpu", weights_only=True)["state_dict"]
    part.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    own = [row for row in read_rows(out / "metrics.csv") if int(row["stage"]) == number]
    row = own[-1] if stage.legacy_last_epoch else min(own, key=lambda r: float(r["val_loss"]))
    return {name: float(row[name]) for name in ("epoch", "val_loss", "val_auc") if row[name]}


def _next_epoch(last: Path) -> int:
    """Return the epoch that follows a checkpoint, counted from 0."""
    return int(torch.load(last, map_location="cpu", weights_only=True)["epoch"]) + 1 if last.exists() else 0


def _checkpoint(folder: Path, name: str, *, monitor: str | None) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, filename=name, monitor=monitor, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )


class _EndAtOnce(Callback):
    """Ends on SIGTERM without a word to the other processes, which are told to end too.

    Lightning would have each exchange messages about it, at every step and amid whatever is exchanged then, which can
    hang. Checkpoints are whole at any time.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take Lightning's handling away."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        setattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", lambda: None)  # noqa: B010  # not public


def _require_seen(out: Path) -> None:
    if not (out / _STATE).exists():
        raise InputError(f"{out} is not seen from here; it must be on a file system that all processes share.")


def _claim(out: Path, recipe: Recipe, source: Source, seed: int, resume: bool) -> None:
    """Make `out` this run's folder, or recognise the run to resume; note the commit, which may change until the end."""
    state = {"data_sha256": source.identity()["sha256"], "seed": seed, "version": darklens.__version__}
    text = config.dump(recipe)
    if not resume or not (out / _STATE).exists():
        if (out / "config.yaml").exists():
            raise InputError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
        prepare_folder(out)
        write_text(out / "config.yaml", text)
        write_json(out / _STATE, state | {"commits": [provenance.commit()]})
        return
    other = _held(out / "config.yaml")
    if other is None:
        raise InputError(f"{out / 'config.yaml'} is no recipe of this version; choose another --out.")
    if other != recipe:
        raise InputError(
            f"{out} holds a run of another recipe: {config.difference(other, recipe)}. Give the same recipe and "
            "changes again (its config.yaml has them all), or choose another --out."
        )
    held = read_json(out / _STATE)
    if any(held.get(name) != value for name, value in state.items()):
        raise InputError(f"{out} holds a run on other data, of another seed or version; choose another --out.")
    commits = dict.fromkeys([*held.get("commits", []), provenance.commit()])
    write_json(out / _STATE, state | {"commits": list(commits)})


def _held(path: Path) -> Recipe | None:
    """Return the recipe of a run; settings that are newer than the run have their defaults. None if it is no recipe."""
    try:
        return config.load(Recipe, path)
    except ConfigError:
        return None


def _load_autoencoder(network: nn.Module, recipe: Recipe, n_pixels: int) -> None:
    donor = Bundle.load(str(recipe.pretrained))
    autoencoder = network.get_submodule("k_network")
    expected = (getattr(recipe.model, "k_network", None), recipe.data.preprocess, n_pixels)
    if (donor.contract.model, donor.contract.preprocess, donor.contract.n_pixels) != expected:
        raise InputError(
            f"{recipe.pretrained} is not an autoencoder of the same size and pre-processing; "
            "train autoencoder_resnet_simple with the same data.preprocess, or leave `pretrained` out."
        )
    autoencoder.load_state_dict(donor.network.state_dict())


def _quiet() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*GPU available but not used.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated.*")  # torch 2.6 has no other name for it
