"""Training speed beside training as the 2024 study describes it.

    python benchmarks/bench_train.py [--networks resnet_simple] [--rounds 5] [--json results/bench.json] [a.b=c ...]

Two processes take turns, so that neither has the other's memory allocator: one trains as `darklens train` does, with
every callback of a run, the other as study_training.py does. Both have the same network, batch size, images and
threads. `vs_study` is the median over rounds of images per second, ours over the study's; `vs_study_cpu` is the same
with processor time in place of wall time, which other work on the machine disturbs less.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import study_training
from record import record

POPULATION, SEED = "deeplense-model-i", 5
NETWORKS = ("resnet_simple", "sis_autoencoder2", "resnet_18")
WARM_UP = 2  # steps


def recipe_of(name, batch_size, *overrides):
    """Return the recipe of a network for endless classification, without the reconstruction that may precede it."""
    from darklens.config import load
    from darklens.training.recipe import Recipe, get

    tree = get(name).model_dump(by_alias=True)
    tree["stages"] = [tree["stages"][-1] | {"epochs": 10**6, "batch_size": batch_size}]
    return load(Recipe, tree, overrides, name=name)


def our_process(pipe, store_path, name, batch_size, threads, overrides):
    """Train by `train` itself; wait after every block of steps for the other process."""
    import torch

    torch.set_num_threads(threads)
    from darklens.data.store import Store
    from darklens.training.learner import Learner
    from darklens.training.run import train

    clock = Clock(pipe)
    Learner.on_train_batch_end = lambda self, outputs, batch, batch_idx: clock.after_step()
    Learner.on_train_start = lambda self: clock.begin()
    with tempfile.TemporaryDirectory() as work, contextlib.suppress(Finished):
        train(recipe_of(name, batch_size, *overrides), Store(store_path), Path(work) / "run", seed=SEED)


def study_process(pipe, store_path, name, batch_size, threads, overrides, files):
    """Train as the study does, with PyTorch's layers and the initial weights of `our_process`."""
    os.environ["DARKLENS_KERNELS"] = "0"
    import torch

    torch.set_num_threads(threads)
    import pytorch_lightning as pl

    from darklens import rng
    from darklens.data.store import Store
    from darklens.models.zoo import build

    store, recipe = Store(store_path), recipe_of(name, batch_size, *overrides)
    pl.seed_everything(rng.integer_seed(SEED, "weights") % 2**32, verbose=False)
    index = store.index
    network = build(recipe.model, n_pixels=index.n_pixels, pixel_scale=index.pixel_scale, n_classes=3)
    dataset = study_training.ImageFiles(Path(files), [int(label) for label in store.labels])
    training = study_training.StudyTraining(network, dataset, batch_size)
    clock = Clock(pipe)
    with contextlib.suppress(Finished):
        clock.begin()
        while True:
            training.step()
            clock.after_step()


class Finished(BaseException):
    """The parent wants no more steps."""


class Clock:
    """Runs as many steps as the pipe asks for, and answers with their seconds of wall and processor time."""

    def __init__(self, pipe):
        self._pipe, self._remaining = pipe, 0

    def begin(self):
        self._remaining = self._pipe.recv()
        if not self._remaining:
            raise Finished
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def after_step(self):
        self._remaining -= 1
        if not self._remaining:
            self._pipe.send((time.perf_counter() - self._wall, time.process_time() - self._cpu))
            self.begin()


class Trainer:
    """A process that trains when asked to."""

    def __init__(self, target, *arguments):
        context = get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=target, args=(other_end, *arguments), daemon=True)
        self._process.start()
        other_end.close()

    def steps(self, n):
        self._pipe.send(n)
        return self._pipe.recv()

    def close(self):
        self._pipe.send(0)
        self._process.join()


def speed(store, files, name, options):
    batch_size = options.batch or study_training.BATCH_SIZE[name]
    common = (store, name, batch_size, options.threads, options.overrides)
    trainers = {"ours": Trainer(our_process, *common), "study": Trainer(study_process, *common, files)}
    times = {name: [] for name in trainers}
    for trainer in trainers.values():
        trainer.steps(WARM_UP)  # caches, compilation
    for _ in range(options.rounds):
        for key, trainer in trainers.items():
            wall, cpu = trainer.steps(options.steps)
            times[key].append((wall / options.steps / batch_size, cpu / options.steps / batch_size))
    for trainer in trainers.values():
        trainer.close()
    wall_ratio, cpu_ratio = (
        statistics.median(study[i] / ours[i] for ours, study in zip(times["ours"], times["study"], strict=True))
        for i in (0, 1)
    )
    return {
        "vs_study": round(wall_ratio, 2),
        "vs_study_cpu": round(cpu_ratio, 2),
        "batch": batch_size,
        "rounds": options.rounds,
        "changes": options.overrides,
        **{f"{key}_ms_per_image": round(1e3 * statistics.median(t[0] for t in times[key]), 2) for key in times},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="changes to our recipe, such as compile=true")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in a round")
    parser.add_argument("--batch", type=int, help="images; default: the study's")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

    from darklens import populations
    from darklens.data.store import Store
    from darklens.simulate.generate import generate

    # So many images that the first epoch outlasts the rounds and no validation is timed.
    batch_size = options.batch or max(study_training.BATCH_SIZE[name] for name in options.networks)
    n_images = int(1.15 * batch_size * (WARM_UP + options.rounds * options.steps + 1)) + 30
    figures = {}
    with tempfile.TemporaryDirectory() as work:
        store, files = Path(work) / "store", Path(work) / "files"
        generate(populations.get(POPULATION), store, n_per_class=n_images // 3, seed=1)
        study_training.write_files(Store(store), files)
        for name in options.networks:
            figures[name] = speed(store, files, name, options)
            print(name, json.dumps(figures[name]), flush=True)
    record(options.json, "train", figures)


if __name__ == "__main__":
    main()
