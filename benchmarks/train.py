"""Images a second of our training against the study's way, and the loss curves of both.

    python benchmarks/train.py [--networks resnet_simple] [--rounds 5] [--json results/bench.json]
    python benchmarks/train.py --curves --out results/training     # 200 steps each; figure and loss_curves.json

Two processes take turns, so that neither has the other's memory allocator: one trains as `darklens train` does, with
every callback of a run, the other as benchmarks/study_way.py. Both have the same network, batch size, images and
threads. A ratio is the median over rounds of images a second, ours over the study's; `ours_cpu` is the same with the
processor's time in place of the wall's, which other work on the machine disturbs less.

The curves have equal initial weights, images and order, Adam at the study's rate, no augmentation and no dropout, so
what differs is rounding: `ours` in float32, `ours_auto` in the precision that a run takes by itself. The noise is the
study's way against itself from weights moved by 1e-6 of their size.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import study_way
from record import record

POPULATION, SEED = "deeplense-model-i", 5
NETWORKS = ("resnet_simple", "sis_autoencoder2", "resnet_18")
AS_STUDIED = [
    *("data.augment.kind=none", "precision=float32"),
    *(f"stages.0.optimiser.{change}" for change in ("kind=adam", f"lr={study_way.RATE}", "weight_decay=0")),
    "stages.0.schedule.kind=constant",
]
WARM_UP = 2  # steps
NO_DROPOUT = {
    "resnet_simple": ["model.dropout=0"],
    "sis_autoencoder2": ["model.classifier.dropout=0"],
    "resnet_18": [],
}


def recipe_of(name, batch, *changes):
    """Return the recipe of a network for endless classification; a reconstruction before it is left out."""
    from darklens.training.recipe import Recipe, get

    tree = get(name).model_dump(by_alias=True)
    tree["stages"] = [tree["stages"][-1] | {"epochs": 10**6, "batch_size": batch}]
    from darklens.config import load

    return load(Recipe, tree, changes, name=name)


def our_side(pipe, store_path, name, batch, threads, changes):
    """Train by `train` itself; wait after every block of steps for the other side."""
    import torch

    torch.set_num_threads(threads)
    from darklens.data.store import Store
    from darklens.training.learner import Learner
    from darklens.training.run import train

    clock = _Clock(pipe)

    def after_batch(self, outputs, batch, batch_idx):
        clock.after_step(outputs["loss"])

    def at_start(self):
        clock.begin()

    Learner.on_train_batch_end, Learner.on_train_start = after_batch, at_start
    with tempfile.TemporaryDirectory() as work, contextlib.suppress(_Done):
        train(recipe_of(name, batch, *changes), Store(store_path), Path(work) / "run", seed=SEED)


def study_side(pipe, store_path, name, batch, threads, changes, files, order, moved_weights):
    """Train as the study, with PyTorch's layers; the initial weights are those of `our_side`."""
    os.environ["DARKLENS_KERNELS"] = "0"
    import torch

    torch.set_num_threads(threads)
    import pytorch_lightning as pl

    from darklens import rng
    from darklens.data.store import Store
    from darklens.models.zoo import build

    store, recipe = Store(store_path), recipe_of(name, batch, *changes)
    pl.seed_everything(rng.integer_seed(SEED, "weights") % 2**32, verbose=False)
    index = store.index
    network = build(recipe.model, n_pixels=index.n_pixels, pixel_scale=index.pixel_scale, n_classes=3)
    if moved_weights:
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + moved_weights * torch.randn_like(weight))
    dataset = study_way.ImageFiles(Path(files), [int(v) for v in store.labels], moved=order is None)
    training = study_way.StudyTraining(network, dataset, batch, order=order)
    clock = _Clock(pipe)
    clock.begin()
    try:
        while True:
            clock.after_step(training.steps(1)[0])
    except _Done:
        pass


class _Done(BaseException):
    """The other end wants no more steps."""


class _Clock:
    """Runs as many steps as the pipe asks for, and answers with their seconds of wall and processor, and losses."""

    def __init__(self, pipe):
        self._pipe, self._left, self._losses = pipe, 0, []

    def begin(self):
        self._left = self._pipe.recv()
        if not self._left:
            raise _Done
        self._losses = []
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def after_step(self, loss):
        self._losses.append(loss)
        self._left -= 1
        if not self._left:
            took = time.perf_counter() - self._wall, time.process_time() - self._cpu
            self._pipe.send((*took, [float(v) for v in self._losses]))
            self.begin()


class Side:
    """A process that trains when asked to."""

    def __init__(self, target, *arguments):
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=target, args=(other, *arguments), daemon=True)
        self._process.start()
        other.close()

    def steps(self, n):
        self._pipe.send(n)
        return self._pipe.recv()

    def close(self):
        self._pipe.send(0)
        self._process.join()


def speed(store, files, name, asked):
    batch = asked.batch or study_way.BATCH[name]
    changes = [*asked.change]
    ours = Side(our_side, store, name, batch, asked.threads, changes)
    study = Side(study_side, store, name, batch, asked.threads, changes, files, None, 0.0)
    images = asked.steps * batch
    times = {"ours": [], "study": []}
    for side in (ours, study):
        side.steps(WARM_UP)  # caches, compilation
    for _ in range(asked.rounds):
        for key, side in (("ours", ours), ("study", study)):
            wall, cpu, _ = side.steps(asked.steps)
            times[key].append((wall / images, cpu / images))
    ours.close(), study.close()
    ratios = [[s[i] / o[i] for o, s in zip(times["ours"], times["study"], strict=True)] for i in (0, 1)]
    return {
        "vs_study": round(statistics.median(ratios[0]), 2),
        "vs_study_cpu": round(statistics.median(ratios[1]), 2),
        "batch": batch,
        "rounds": asked.rounds,
        "changes": changes,
        **{f"{key}_ms_per_image": round(1e3 * statistics.median(t[0] for t in times[key]), 2) for key in times},
    }


def curves(store_path, files, name, asked):
    from darklens import rng
    from darklens.data.datamodule import BatchOrder, split
    from darklens.data.store import Store
    from darklens.training.precision import precision_of

    batch = asked.batch or study_way.BATCH[name]
    changes = [*AS_STUDIED, *NO_DROPOUT[name]]
    recipe, store = recipe_of(name, batch, *changes), Store(store_path)
    parts = split(store.labels, validation_fraction=recipe.data.validation_fraction, seed=SEED)
    batches = BatchOrder(parts.train, batch, shuffle=True, seed=rng.integer_seed(SEED, "stage", 0))
    order = []
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        order += itertools.chain(*batches)
        if len(order) >= asked.steps * batch:
            break
    common = (store_path, name, batch, asked.threads, changes)
    found = earlier_study(asked.study, name, batch, asked.steps) if asked.study else {}
    for key, side in (
        ("ours", lambda: Side(our_side, *common)),
        ("ours_auto", lambda: Side(our_side, *common[:-1], [*changes, "precision=auto"])),
        ("study", lambda: Side(study_side, *common, files, order, 0.0)),
        ("study_moved", lambda: Side(study_side, *common, files, order, 1e-6)),
    ):
        if key in found:
            continue
        running = side()
        found[key] = running.steps(asked.steps)[2]
        running.close()
    losses = {key: np.array(values) for key, values in found.items()}
    study = losses.pop("study")
    away = {key: values - study for key, values in losses.items()}
    return {
        "batch": batch,
        "steps": asked.steps,
        "precision_auto": precision_of("auto"),
        "rms_difference_from_study": {key: float(np.sqrt(np.mean(v**2))) for key, v in away.items()},
        "difference_of_the_mean_of_the_last_50": {key: float(np.mean(v[-50:])) for key, v in away.items()},
        "scatter_from_batch_to_batch": float(np.std(np.diff(study)) / np.sqrt(2)),
        "losses": {key: [round(v, 6) for v in losses] for key, losses in found.items()},
    }


def earlier_study(path, name, batch, steps):
    """Return the losses of the study's way in an earlier file of the same settings."""
    entry = json.loads(path.read_text())["networks"][name]
    if (entry["batch"], entry["steps"]) != (batch, steps):
        raise SystemExit(f"{path} has {entry['steps']} steps of {entry['batch']} images, not {steps} of {batch}")
    return {key: entry["losses"][key] for key in ("study", "study_moved")}


def images_needed(asked):
    """Return the images of a store whose first epoch outlasts the rounds, so that no validation is timed."""
    if asked.images or asked.curves:
        return asked.images or 3000
    batch = asked.batch or max(study_way.BATCH[name] for name in asked.networks)
    return int(1.15 * batch * (WARM_UP + asked.rounds * asked.steps + 1)) + 30


def draw_curves(found, path):
    from matplotlib.figure import Figure

    from darklens.report.figures import to_png

    figure = Figure(figsize=(4 * len(found), 3.2), layout="constrained")
    styles = {
        "study": ("0.6", 3.0, "the study's way"),
        "ours": ("C0", 1.0, "ours"),
        "ours_auto": ("C1", 1.0, "ours, precision auto"),
    }
    for axes, (name, entry) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for key, (colour, width, label) in styles.items():
            axes.plot(entry["losses"][key], color=colour, linewidth=width, label=label)
        axes.set(title=name, xlabel="step", ylabel="training loss")
        axes.legend()
    path.write_bytes(to_png(figure))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("change", nargs="*", help="changes to our recipe, such as compile=true")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="in a round (default 4), or of the curves (default 200)")
    parser.add_argument("--batch", type=int, help="images; default: the study's")
    parser.add_argument("--images", type=int, help="default: what the steps of all rounds need; 3000 for the curves")
    parser.add_argument("--pixels", type=int, help="default: the population's 150")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--study", type=Path, help="loss_curves.json whose losses of the study's way are kept")
    parser.add_argument("--out", type=Path, help="folder of loss_curves.json and loss_curves.png")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.steps = asked.steps or (200 if asked.curves else 4)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

    from darklens.data.store import Store
    from darklens.simulate import populations
    from darklens.simulate.generate import generate

    found = {}
    with tempfile.TemporaryDirectory() as work:
        store, files = Path(work) / "store", Path(work) / "files"
        size = [f"field.n_pixels={asked.pixels}"] if asked.pixels else []
        generate(populations.get(POPULATION, size), store, n_per_class=images_needed(asked) // 3, seed=1)
        study_way.write_files(Store(store), files)
        for name in asked.networks:
            found[name] = (curves if asked.curves else speed)(store, files, name, asked)
            print(name, json.dumps({k: v for k, v in found[name].items() if k != "losses"}), flush=True)
    if not asked.curves:
        record(asked.json, "train", found)
    elif asked.out:
        from darklens import provenance
        from darklens.files import write_json

        asked.out.mkdir(parents=True, exist_ok=True)
        about = {"commit": provenance.commit(), "hardware": provenance.hardware()}
        if asked.study:
            about["commit_of_the_study"] = json.loads(asked.study.read_text())["commit"]
        write_json(asked.out / "loss_curves.json", {"schema": 1, **about, "networks": found})
        draw_curves(found, asked.out / "loss_curves.png")


if __name__ == "__main__":
    main()
