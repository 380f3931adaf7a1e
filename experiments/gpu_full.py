"""Train full-size systems on one GPU within minutes, on images that are simulated on it.

    python -m experiments.gpu_full train --out DIR [--minutes 8.5]      # on the GPU
    python -m experiments.gpu_full bundle DIR SYSTEM --out BUNDLE       # afterwards, on any machine

Each system gets the same time. It runs the stages of its recipe `SYSTEM_long`, each for a share of the time instead of
a number of epochs. No image repeats. DIR/metrics.json has learning curves and metrics on fresh test images, and
DIR/SYSTEM.safetensors.N the weights in float16, cut into files of at most 15 MiB.
"""

import argparse
import copy
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from darklens import populations, provenance, rng
from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.compilation import compile_network
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.evaluation.metrics import macro_auc
from darklens.files import read_json, write_json
from darklens.models.autoencoder import reconstruction_error
from darklens.models.zoo import count_parameters
from darklens.populations.population import Population
from darklens.simulate.render import render
from darklens.simulate.truth import draw, label_of
from darklens.training.ema import recompute_batch_norm
from darklens.training.recipe import OneCycle, Recipe, Stage, get

SYSTEMS = ("resnet_simple", "sis_autoencoder2", "resnet_18")
PART = 15 << 20  # bytes of a file of weights
RECENT = 16  # batches for the statistics of batch normalisation
TRAIN, VALIDATION, TEST = 1, 2, 3  # seeds of the images


class Truths(IterableDataset[tuple[dict[str, Tensor], Tensor]]):
    """Batches of the parameters and labels of lenses, drawn on the CPU; the workers of a loader share them."""

    def __init__(self, population: Population, seed: int, batch_size: int) -> None:
        self._population, self._seed, self._size = population, seed, batch_size

    def batch(self, number: int, size: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return a batch by its number."""
        indices = range(number * self._size, number * self._size + (size or self._size))
        truth = draw(self._population, self._seed, indices)
        values = {name: torch.from_numpy(column.astype(np.float32)) for name, column in truth.items()}
        return values, torch.tensor([label_of(self._population, i) for i in indices])

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield self.batch(number)
            number += step


class Simulator:
    """Makes preprocessed images on the device from their parameters, with noise that a seed fixes."""

    def __init__(self, recipe: Recipe, population: Population, device: torch.device, seed: int) -> None:
        self._recipe, self._population, self._device = recipe, population, device
        self._generator = torch.Generator(device).manual_seed(seed)

    @torch.no_grad()
    def __call__(self, truth: dict[str, Tensor]) -> Tensor:
        """Return network inputs (b, 1, m, m)."""
        rate = render(self._population, truth, device=self._device)
        counts = torch.poisson(rate + self._population.noise.sky, generator=self._generator)
        images: Tensor = self._recipe.data.preprocess(counts[:, None])
        return images.contiguous(memory_format=torch.channels_last)

    def images(self, truths: Truths, n: int) -> tuple[list[Tensor], np.ndarray]:
        """Return n images in batches, and their labels."""
        size = truths._size
        parts = [truths.batch(i, min(size, n - i * size)) for i in range(math.ceil(n / size))]
        return [self(truth) for truth, _ in parts], torch.cat([labels for _, labels in parts]).numpy()


class Training:
    """The training of one system until a deadline."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.recipe = get(f"{name}_long", [f"data.preprocess.crop={options.crop or 'null'}"])
        self.options, self.device = options, torch.device(options.device)
        self.population = populations.get(str(self.recipe.data.population), options.population_overrides)
        self.contract = self._contract()
        torch.manual_seed(rng.integer_seed(options.seed, "weights") % 2**32)
        network = self.contract.build().to(self.device).to(memory_format=torch.channels_last)
        self.network, self.mean = network, copy.deepcopy(network)
        if options.compile:
            compile_network(network, self.device)
            if hasattr(network, "k_network"):
                compile_network(network.k_network, self.device)
        self.images_seen, self.curve = 0, list[dict[str, float]]()
        simulator = Simulator(self.recipe, self.population, self.device, options.seed + VALIDATION)
        truths = Truths(self.population, options.seed + VALIDATION, options.batch_size)
        self.validation = simulator.images(truths, options.validation_images)

    def _contract(self) -> Contract:
        field, known = self.population.field, {"recipe": self.recipe.name, "preprocess": self.recipe.data.preprocess}
        known["classes"] = list(self.population.class_names)
        scale = {"n_pixels": field.n_pixels, "pixel_scale": field.pixel_scale}
        return Contract.untrained(self.recipe.model, **scale, **known)

    def run(self, deadline: float) -> None:
        """Run all stages, each for a share of the time that remains after compilation."""
        for task in {stage.task for stage in self.recipe.stages}:
            stage = next(stage for stage in self.recipe.stages if stage.task == task)
            self._stage(stage, seed=0, seconds=0, dry=True)
        shares = [stage.epochs * (stage.images_per_epoch or 1) for stage in self.recipe.stages]
        start, total = time.perf_counter(), deadline - time.perf_counter()
        for index, stage in enumerate(self.recipe.stages):
            end = start + total * sum(shares[: index + 1]) / sum(shares)
            self._stage(stage, seed=1 + index, seconds=max(0.0, end - time.perf_counter()))
            print(f"{self.recipe.name}, stage {index}: {self.images_seen:,} images, {self.curve[-1:]}", flush=True)

    def _stage(self, stage: Stage, *, seed: int, seconds: float, dry: bool = False) -> None:
        """Train for some seconds; at least one step. A dry run, for compilation, leaves the weights as they are."""
        options, trains_k = self.options, stage.task == "reconstruct" and hasattr(self.network, "k_network")
        trained, mean = (n.get_submodule("k_network") if trains_k else n for n in (self.network, self.mean))
        before = copy.deepcopy(trained.state_dict()) if dry else {}
        population = self.population.with_substructure_scale(stage.substructure_scale)
        seed = rng.integer_seed(options.seed + TRAIN, self.recipe.name, seed)
        simulator = Simulator(self.recipe, population, self.device, seed % 2**32)
        loader = DataLoader(Truths(population, seed, options.batch_size), batch_size=None, num_workers=options.workers)
        optimiser = torch.optim.AdamW(trained.parameters(), lr=options.lr, weight_decay=0.01, fused=True)
        recent: deque[Tensor] = deque(maxlen=RECENT)
        start = checked = time.perf_counter()
        for step, (truth, labels) in enumerate(loader):
            now = time.perf_counter()
            fraction = min(1.0, (now - start) / seconds) if seconds else 1.0
            for group in optimiser.param_groups:
                group["lr"] = options.lr * relative_rate(stage, fraction)
            images = simulator(truth)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=options.bfloat16):
                output = trained(images)
            if stage.task == "reconstruct":
                loss = reconstruction_error(output, images).mean()
            else:
                loss = nn.functional.cross_entropy(output.float(), labels.to(self.device))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), stage.gradient_clip or 1.0)
            optimiser.step()
            average(mean, trained, min(stage.ema_decay, (1 + step) / (10 + step)))
            recent.append(images)
            if not dry:
                self.images_seen += len(images)
            done = fraction >= 1
            if not dry and stage.task == "classify" and (done or now - checked > options.check_seconds):
                self._normalise(mean, recent)
                auc = macro_auc(self.validation[1], self.probabilities(self.validation[0]))
                self.curve.append({"images": self.images_seen, "scale": stage.substructure_scale, "auc": auc})
                checked = time.perf_counter()
            if done:
                break
        if not math.isfinite(loss.item()):
            raise SystemExit(f"{self.recipe.name}: the loss is {loss.item()}; lower --lr.")
        if dry:
            trained.load_state_dict(before)
            mean.load_state_dict(before)
        else:
            self._normalise(mean, recent)
            trained.load_state_dict(mean.state_dict())

    @torch.no_grad()
    def _normalise(self, mean: nn.Module, recent: Sequence[Tensor]) -> None:
        """Compute the statistics of batch normalisation for the mean weights."""
        recompute_batch_norm(mean, list(recent))

    @torch.no_grad()
    def probabilities(self, batches: list[Tensor]) -> np.ndarray:
        """Return the class probabilities of the mean weights, in float32."""
        self.mean.eval()
        return torch.cat([self.mean(images).float().softmax(1) for images in batches]).double().cpu().numpy()

    def result(self, seconds: float) -> dict[str, Any]:
        """Return metrics on fresh test images, and the contract of a bundle."""
        options = self.options
        simulator = Simulator(self.recipe, self.population, self.device, options.seed + TEST)
        truths = Truths(self.population, options.seed + TEST, options.batch_size)
        images, labels = simulator.images(truths, options.test_images)
        p = self.probabilities(images)
        metrics = metrics_with_intervals(labels, p / p.sum(1, keepdims=True), self.contract.classes)
        made = {"version": "", "commit": provenance.commit(), "hardware": provenance.hardware(), "seed": options.seed}
        made |= {"train_seconds": round(seconds, 1), "train_images": self.images_seen}
        data = {"population": self.population.name, "seed": options.seed, "sha256": "", "n": self.images_seen}
        update = {"provenance": made, "data": data, "parameters": count_parameters(self.mean)}
        contract = self.contract.model_copy(update=update)
        return {"metrics": metrics, "curve": self.curve, "contract": contract.model_dump(mode="json", by_alias=True)}


def relative_rate(stage: Stage, fraction: float) -> float:
    """Return the learning rate of a stage relative to its maximum, after a fraction of its time."""
    if not isinstance(stage.schedule, OneCycle):
        return 1.0
    rise = stage.schedule.warm_up
    if fraction < rise:
        return 0.04 + 0.96 * fraction / rise
    return 0.5 * (1 + math.cos(math.pi * (fraction - rise) / (1 - rise))) + 1e-4


@torch.no_grad()
def average(mean: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the mean weights towards those of the network; normalisation statistics are computed when needed."""
    torch._foreach_lerp_(list(mean.parameters()), list(network.parameters()), 1 - decay)


def train(options: argparse.Namespace) -> None:
    """Train the systems one after the other, and write what comes back."""
    torch.set_float32_matmul_precision("high")
    end, results = time.perf_counter() + 60 * options.minutes, {}
    for i, name in enumerate(options.systems):
        start = time.perf_counter()
        training = Training(name, options)
        training.run(start + (end - start) / (len(options.systems) - i))
        results[name] = training.result(time.perf_counter() - start)
        weights = {key: value.half().contiguous() for key, value in training.mean.state_dict().items()}
        if name in options.weights:
            content = save({key: value.cpu() for key, value in weights.items()})
            for part in range(math.ceil(len(content) / PART)):
                path = options.out / f"{name}.safetensors.{part}"
                path.write_bytes(content[part * PART : (part + 1) * PART])
        write_json(options.out / "metrics.json", results)
        print(name, json.dumps({key: results[name]["metrics"][key] for key in ("auc", "accuracy")}), flush=True)


def bundle(options: argparse.Namespace) -> None:
    """Write a bundle without calibration; `darklens calibrate` adds it."""
    content = b"".join(path.read_bytes() for path in parts(options.folder, options.system))
    contract = Contract.model_validate(read_json(options.folder / "metrics.json")[options.system]["contract"])
    network = contract.build()
    network.load_state_dict({key: value.float() for key, value in load(content).items()})
    Bundle(contract, network).save(options.out)


def parts(folder: Path, system: str) -> list[Path]:
    """Return the files of the weights of a system, in order."""
    return sorted(folder.glob(f"{system}.safetensors.*"), key=lambda path: int(path.suffix[1:]))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    trainer = commands.add_parser("train", help="train on the GPU")
    trainer.set_defaults(run=train)
    trainer.add_argument("--out", type=Path, required=True, help="folder for metrics and weights")
    trainer.add_argument("--minutes", type=float, default=8.5, help="for all systems, compilation included")
    trainer.add_argument("--systems", nargs="+", default=list(SYSTEMS), help="names before _long of recipes")
    trainer.add_argument("--weights", nargs="*", default=list(SYSTEMS[:2]), help="systems whose weights come back")
    trainer.add_argument("--crop", type=int, default=0, help="side of the central crop, pixels; 0: whole images")
    trainer.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    trainer.add_argument("--workers", type=int, default=min(8, (os.cpu_count() or 1) - 1), help="draw parameters")
    trainer.add_argument("--batch-size", type=int, default=256)
    trainer.add_argument("--lr", type=float, default=2e-3, help="maximum learning rate")
    trainer.add_argument("--check-seconds", type=float, default=10, help="between points of the learning curve")
    trainer.add_argument("--validation-images", type=int, default=3000)
    trainer.add_argument("--test-images", type=int, default=7500)
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--population-overrides", nargs="*", default=[], help="such as field.n_pixels=64")
    for name in ("compile", "bfloat16"):
        trainer.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    bundler = commands.add_parser("bundle", help="make a bundle from weights that came back")
    bundler.set_defaults(run=bundle)
    bundler.add_argument("folder", type=Path)
    bundler.add_argument("system")
    bundler.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    options.run(options)


if __name__ == "__main__":
    main()
