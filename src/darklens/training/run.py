"""A training from the recipe to the bundle. The only module that makes a Trainer.

RUN/config.yaml            the recipe with all defaults and overrides
RUN/metrics.csv            one row per epoch
RUN/checkpoints/STAGE/     last.ckpt and best.ckpt, for resuming only
RUN/bundle/                the result
"""

import logging
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
from darklens.bundle.contract import Contract
from darklens.compilation import compile_network
from darklens.data.store import Store
from darklens.errors import ConfigError, InputError
from darklens.evaluation.calibrate import LabelledOutputs, calibrate
from darklens.executors import usable_cores
from darklens.files import read_json
from darklens.fit.cache import FitCache, cached_fits, fit_settings_of
from darklens.fit.features import FitFeatures
from darklens.kernels.library import library
from darklens.memory import keep_freed_memory
from darklens.models.zoo import build, count_parameters
from darklens.training.ema import WeightEMA
from darklens.training.epoch_metrics import EpochMetrics, MetricsWriter, read_rows
from darklens.training.learner import Learner
from darklens.training.precision import precision_of
from darklens.training.processes import Processes, process_group
from darklens.training.recipe import Recipe, Stage
from darklens.training.run_folder import STATE, claim_run, lock_run, next_epoch, require_new_run, require_shared
from darklens.training.sources import Loader, Source, source_of
from darklens.training.sync_batch_norm import synchronised

_OOD_REFERENCE_IMAGES = 4000  # training images: enough for the covariance of 500 features


def train(
    recipe: Recipe,
    store: Store | None,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[EpochMetrics], None] = lambda _: None,
) -> Bundle:
    """Train a recipe on a store, write the run folder and return its bundle.

    Under torchrun or Slurm's `srun` all processes call it and train together; see `darklens.training.processes`.

    Args:
        recipe: The recipe.
        store: The images, some of which become validation images; None if the recipe simulates images.
        out: Run folder to write.
        seed: Seed of the initial weights, the split, the order and the augmentation.
        resume: Continue an interrupted run in `out` from the last complete epoch.
        device: Device of network and fits, such as "cuda". Of several processes, each takes a GPU.
        on_epoch: Called after each epoch. An exception that it raises ends the training. For a single process only.

    Raises:
        ConfigError: If the recipe and the images do not fit together, or there is no such device.
        InputError: If `out` contains a run and `resume` is not set, or a run of another recipe, data or seed, or
            another process is training there.
    """
    with process_group(device) as processes, ExitStack() as stack:
        _silence_lightning()
        keep_freed_memory()
        processes.run_on_main(lambda: require_new_run(out, resume=resume))
        library()  # before the first step, so that a resumed run uses the same code
        fits = processes.run_main_first(lambda: fits_for(recipe, store, device=processes.device))
        source, network = processes.run_on_all(lambda: _prepare(recipe, store, fits, seed, processes))
        processes.run_on_main(lambda: lock_run(out, stack))
        processes.run_on_main(lambda: claim_run(out, recipe, source, seed, resume))
        processes.run_on_all(lambda: require_shared(out))
        validation: dict[str, float] = {}
        for index, stage in enumerate(recipe.stages):
            if stage.task != "reconstruct" or recipe.pretrained is None:
                validation = _run_stage(network, recipe, stage, index, source, out, seed, processes, on_epoch)
        world_size = processes.rank.world_size
        processes.run_on_main(
            lambda: _write_bundle(network, recipe, source, out, seed, validation, world_size, processes.device)
        )
        return processes.run_on_all(lambda: Bundle.load(out))


def _prepare(
    recipe: Recipe, store: Store | None, fits: FitCache | None, seed: int, processes: Processes
) -> tuple[Source, nn.Module]:
    """Return the source of the images, and the network with its initial weights."""
    pin_memory = processes.device.type == "cuda"
    source = source_of(recipe.data, recipe.stages, store, seed=seed, fits=fits, pin_memory=pin_memory)
    _check_world_size(recipe, source, processes.rank.world_size)
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
    return source, synchronised(network, processes.device) if processes.is_distributed else network


def _check_world_size(recipe: Recipe, source: Source, world_size: int) -> None:
    """Check that every process gets images of every batch, and of the validation images."""
    for i, stage in enumerate(recipe.stages):
        if source.batch_size(stage) < world_size:
            raise ConfigError(
                f"stages.{i}.batch_size: a batch of {source.batch_size(stage)} images cannot be shared by "
                f"{world_size} processes; increase it, or start fewer processes."
            )
    if source.validation_images < world_size:
        raise ConfigError(f"{source.validation_images} validation images cannot be shared by {world_size} processes.")


def _write_bundle(
    network: nn.Module,
    recipe: Recipe,
    source: Source,
    out: Path,
    seed: int,
    validation: dict[str, float],
    world_size: int,
    device: torch.device,
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
            "commit": ", ".join(read_json(out / STATE)["commits"]),
            "hardware": provenance.hardware(),
            "seed": seed,
            "train_seconds": round(seconds, 1),
            "train_images": source.train_images,
            **({"processes": world_size} if world_size > 1 else {}),
        },
    )
    bundle = Bundle(contract, network, device=device)
    if contract.task == "classify":
        bundle = _calibrate(bundle, source, recipe.stages, seed)
    bundle.save(out / "bundle")


def fits_for(
    recipe: Recipe,
    store: Store | None,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda _: None,
) -> FitCache | None:
    """Return the fits of a store if the network of the recipe takes fits, and fit the images that have none yet.

    Args:
        recipe: The recipe.
        store: The images. Their fits are cached in its folder.
        device: Device of the fits.
        advance: Called with the number of newly fitted images.

    Raises:
        ConfigError: If the recipe and the images do not fit together.
        InputError: If a class has too few images.
    """
    recipe.check_sizes(source_of(recipe.data, recipe.stages, store, seed=0).n_pixels)
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
        centred=settings.centred,
        workers=usable_cores(),
        device=device,
        limit=limit,
        advance=advance,
    )


def _calibrate(bundle: Bundle, source: Source, stages: Sequence[Stage], seed: int) -> Bundle:
    """Calibrate on the validation images of the last stage, without augmentation."""
    reference, validation = source.calibration_loaders(stages[-1], len(stages) - 1, _OOD_REFERENCE_IMAGES)
    name = "validation images, which chose the epoch"
    outputs = _outputs(bundle, validation)
    return calibrate(bundle, outputs, reference=_outputs(bundle, reference), images=name, seed=seed)


def _outputs(bundle: Bundle, images: Loader) -> LabelledOutputs:
    outputs, labels = [], []
    for batch, batch_labels in images:
        inputs = batch.to(bundle.device) if isinstance(batch, FitFeatures) else bundle.inputs_of(batch.numpy())
        outputs.append(bundle.output(inputs))
        labels.append(batch_labels.numpy())
    return LabelledOutputs(
        Output(*(np.concatenate(parts) for parts in zip(*outputs, strict=True))), np.concatenate(labels)
    )


def _run_stage(
    network: nn.Module,
    recipe: Recipe,
    stage: Stage,
    index: int,
    source: Source,
    out: Path,
    seed: int,
    processes: Processes,
    on_epoch: Callable[[EpochMetrics], None],
) -> dict[str, float]:
    """Train one stage, load its selected weights into `network`, and return their validation metrics."""
    trained: nn.Module = network
    if stage.task == "reconstruct" and isinstance(child := getattr(network, "k_network", None), nn.Module):
        trained = child
    if recipe.compile:
        compile_network(trained, processes.device)
    folder = out / "checkpoints" / f"stage{index}-{stage.task}"
    last = folder / "last.ckpt"
    # Not the save_last of ModelCheckpoint, which writes only when the best epoch changes.
    keep_best, keep_last = _checkpoint(folder, "best", monitor="val_loss"), _checkpoint(folder, "last", monitor=None)
    first_epoch = processes.run_on_all(lambda: next_epoch(last))
    metrics = MetricsWriter(out / "metrics.csv", stage, index, on_epoch, enabled=processes.is_main)
    metrics.drop_from(first_epoch)
    trainer = pl.Trainer(
        max_epochs=stage.epochs,
        **processes.trainer_arguments(),
        precision=precision_of(recipe.precision, processes.device),
        gradient_clip_val=stage.gradient_clip,
        callbacks=[
            *([WeightEMA(stage.ema_decay)] if stage.ema_decay else []),
            *(metrics, keep_best, keep_last),
            *([_ExitOnSigterm()] if processes.is_distributed else []),
            *([RichProgressBar(leave=False)] if Console().is_terminal else []),
        ],
        enable_progress_bar=Console().is_terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,
        logger=False,
    )
    learner = Learner(
        trained,
        stage=stage,
        stage_index=index,
        data=recipe.data,
        seed=seed,
        batch_size=source.batch_size(stage),
        processes=processes,
        fit_settings=fit_settings_of(recipe.model),
    )
    try:
        trainer.fit(
            learner,
            *source.loaders(stage, index, first_epoch, processes.batch_slice),
            ckpt_path=str(last) if first_epoch else None,
            weights_only=True,
        )
    except SystemExit:
        if not trainer.interrupted:  # Lightning turns Ctrl-C into SystemExit
            raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    selected = last if stage.legacy_last_epoch else folder / "best.ckpt"
    state = torch.load(selected, map_location="cpu", weights_only=True)["state_dict"]
    trained.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    rows = [row for row in read_rows(out / "metrics.csv") if int(row["stage"]) == index]
    row = rows[-1] if stage.legacy_last_epoch else min(rows, key=lambda r: float(r["val_loss"]))
    return {name: float(row[name]) for name in ("epoch", "val_loss", "val_auc") if row[name]}


def _checkpoint(folder: Path, name: str, *, monitor: str | None) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, filename=name, monitor=monitor, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )


class _ExitOnSigterm(Callback):
    """Exits on SIGTERM without a message to the other processes, which get the signal too.

    Lightning would exchange messages about the signal at every step, among the other exchanges, which can hang.
    Checkpoints are complete at any time.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the signal handling of Lightning."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        setattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", lambda: None)  # noqa: B010  # not public


def _load_autoencoder(network: nn.Module, recipe: Recipe, n_pixels: int) -> None:
    pretrained = Bundle.load(str(recipe.pretrained))
    autoencoder = network.get_submodule("k_network")
    expected = (getattr(recipe.model, "k_network", None), recipe.data.preprocess, n_pixels)
    if (pretrained.contract.model, pretrained.contract.preprocess, pretrained.contract.n_pixels) != expected:
        raise InputError(
            f"{recipe.pretrained} is not an autoencoder of the same size and preprocessing; "
            "train autoencoder_resnet_simple with the same data.preprocess, or omit `pretrained`."
        )
    autoencoder.load_state_dict(pretrained.network.state_dict())


def _silence_lightning() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*GPU available but not used.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated.*")  # torch 2.6 has no other name for it
