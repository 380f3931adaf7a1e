"""Distributed training on two gloo processes: results, errors, and a killed process."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from spawning import free_port, prepared_processes

from darklens import populations
from darklens.cli import main
from darklens.simulate.generate import generate

WORLD_SIZE = 2
FIELD = "field.n_pixels=44"
# In float32: a share of a batch is rounded differently, in bfloat16 by more than the tolerances here.
SMALL = ["data.preprocess.crop=44", "stages.0.epochs=2", "stages.0.batch_size=9", "precision=float32"]
STREAM = ["kind=stream", "population=common-test-i", f"overrides=[{FIELD}]", "images_per_epoch=27", "workers=0"]
SYSTEMS = {
    "resnet_simple": ["resnet_simple", *SMALL, "model.dropout=0"],
    "running statistics": ["resnet_simple", *SMALL, "model.dropout=0", "stages.0.ema_decay=0"],
    "a stream": [
        *("resnet_simple", *SMALL, "model.dropout=0", "data.augment.kind=dihedral"),
        *(f"data.{change}" for change in (*STREAM, "validation_images=7")),
        *("stages.0.schedule.kind=plateau", "stages.0.optimiser.lr=1e-4"),
    ],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "s"
    generate(populations.get("common-test-i", [FIELD]), path, n_per_class=13, seed=1, workers=1)
    return path


@pytest.fixture(scope="module")
def processes():
    return prepared_processes()


def run_command(environment, words, log, killed_in):
    """Run a command with its output in a file; the last process kills itself in one step of one epoch."""
    os.environ |= environment
    torch.set_num_threads(1)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if killed_in and environment.get("SLURM_PROCID") == str(WORLD_SIZE - 1):
        from darklens.training.learner import Learner

        original = Learner.training_step

        def step(self, batch, batch_idx):
            if (self.current_epoch, batch_idx) == killed_in:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, batch, batch_idx)

        Learner.training_step = step
    main(words)


def launch(processes, words, folder, *, world_size=WORLD_SIZE, killed_in=None):
    """Run a command like srun; return the exit codes and the output of each process."""
    port, children = str(free_port()), []
    for rank in range(world_size):
        step = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": world_size}
        step |= {"SLURM_STEP_TASKS_PER_NODE": world_size, "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in step.items()} if world_size > 1 else {}
        arguments = (environment, [str(word) for word in words], folder / f"log{rank}", killed_in)
        children.append(processes.Process(target=run_command, args=arguments))
    for process in children:
        process.start()
    for process in children:
        process.join(100)
        if process.is_alive():
            process.kill()
            pytest.fail("a process hung")
    return [p.exitcode for p in children], [output_of(folder / f"log{rank}") for rank in range(world_size)]


def output_of(log):
    """Return the output of a process without a warning that the command line switches off when it imports torch."""
    return "".join(line for line in log.read_text().splitlines(True) if "find_unused_parameters" not in line)


def command(system, store, out, *more):
    data = [] if any(word.startswith("data.kind=stream") for word in system) else ["--data", store]
    return ["train", *system, *data, "--out", out, "--seed", 5, *more]


def rows(out):
    with (out / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def weights(out):
    return load_file(out / "bundle" / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["resnet_simple", pytest.param("running statistics", marks=pytest.mark.sweep), "a stream"]
)
def test_two_processes_train_like_one(name, store, processes, tmp_path):
    for world_size, out in ((1, tmp_path / "one"), (WORLD_SIZE, tmp_path / "two")):
        codes, outputs = launch(processes, command(SYSTEMS[name], store, out), tmp_path, world_size=world_size)
        assert codes == [0] * world_size, outputs
    assert "validation loss" in outputs[0] and outputs[1] == ""
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        for column in ("train_loss", "val_loss", "val_auc", "lr"):
            assert a[column] == b[column] or float(a[column]) == pytest.approx(float(b[column]), rel=2e-4), column
    # Adam divides by the magnitude of the gradient. Where a gradient is rounding noise, as for weights whose effect
    # normalisation cancels, single weights differ by as much as the step size.
    first, second = (torch.cat([v.double().flatten() for v in weights(tmp_path / o).values()]) for o in ("one", "two"))
    assert (first - second).norm() < 2e-3 * first.norm()


def test_a_killed_process_stops_the_others_and_resuming_gives_the_same_weights(store, processes, tmp_path):
    system = ["resnet_simple", *SMALL]
    assert launch(processes, command(system, store, tmp_path / "whole"), tmp_path)[0] == [0, 0]
    cut = command(system, store, tmp_path / "cut", "--resume")
    codes, outputs = launch(processes, cut, tmp_path, killed_in=(1, 2))
    assert codes == [1, -signal.SIGKILL]
    assert outputs[0].count("darklens:") == 1 and "--resume" in outputs[0] and "Traceback" not in outputs[0]
    assert not (tmp_path / "cut" / "bundle").exists() and len(rows(tmp_path / "cut")) == 1
    assert launch(processes, cut, tmp_path)[0] == [0, 0]
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert [r["val_loss"] for r in rows(tmp_path / "whole")] == [r["val_loss"] for r in rows(tmp_path / "cut")]


def test_one_process_fits_a_store_for_both(store, processes, tmp_path):
    system = ["lens_residual", "model.population=common-test-i", f"model.overrides=[{FIELD}]"]
    system += ["stages.0.epochs=1", "stages.0.batch_size=9"]
    codes, outputs = launch(processes, command(system, store, tmp_path / "r"), tmp_path)
    assert codes == [0, 0], outputs
    assert all(np.isfinite(value.numpy()).all() for value in weights(tmp_path / "r").values())
    fits = list((store / "fits").glob("*/*.maps.npy"))
    assert len(fits) == 1 and outputs[1] == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["resnet_simple", "stages.0.epoch=3"], "did you mean 'epochs'"),
        (["resnet_simple", "data.preprocess.crop=96"], "cannot be cropped"),
        (["resnet_simple", "--epochs", "3"], "--epochs"),
    ],
)
def test_an_error_is_reported_once(words, sentence, store, processes, tmp_path):
    codes, outputs = launch(processes, command(words, store, tmp_path / "r"), tmp_path)
    assert codes == [2, 2] and outputs[1] == ""
    assert outputs[0].count("\n") == 1 and sentence in outputs[0]
    assert not (tmp_path / "r").exists()


def test_a_batch_must_have_an_image_for_every_process(store, processes, tmp_path):
    words = command(["resnet_simple", "stages.0.batch_size=2"], store, tmp_path / "r")
    codes, outputs = launch(processes, words, tmp_path, world_size=3)
    assert codes == [2, 2, 2] and "a batch of 2 images cannot be shared by 3 processes" in outputs[0]
    assert outputs[1:] == ["", ""] and not (tmp_path / "r").exists()


@pytest.mark.sweep
def test_torchrun_starts_a_training_and_restarts_it_after_a_process_was_killed(store, tmp_path):
    out = tmp_path / "r"
    words = command([*SYSTEMS["resnet_simple"], "stages.0.epochs=8"], store, out, "--resume")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD_SIZE), "--standalone"]
    words = [*torchrun, "--max-restarts", "1", "-m", "darklens.cli", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.DEVNULL) as launcher,
    ):
        try:
            while launcher.poll() is None and not (out / "metrics.csv").exists():
                time.sleep(0.05)
            workers = psutil.Process(launcher.pid).children()
            next(worker for worker in workers if worker.environ().get("RANK") == "1").kill()
            assert launcher.wait(100) == 0
        finally:
            launcher.terminate()
    assert [row["epoch"] for row in rows(out)] == [str(i) for i in range(8)] and (out / "bundle").exists()
    assert (tmp_path / "log").read_text().count("Bundle in") == 1
