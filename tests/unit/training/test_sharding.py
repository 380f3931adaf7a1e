"""What several processes see of a store and of a stream, and how they know who they are."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.data.loaders import BatchOrder
from darklens.data.part import Part
from darklens.data.preprocess import Affine, BatchRandom, Dihedral, Preprocess
from darklens.errors import ConfigError
from darklens.simulate.generate import generate
from darklens.training.processes import ALONE, Place, place_of
from darklens.training.recipe import get
from darklens.training.sources import source_of

INDICES = np.arange(100, 147)
WORLDS = [1, 2, 3, 5]


def parts_of(world, **settings):
    orders = [BatchOrder(INDICES, 10, seed=1, part=Part(rank, world), **settings) for rank in range(world)]
    for order in orders:
        order.set_epoch(3)
    return orders


@pytest.mark.parametrize("world", WORLDS)
def test_parts_are_the_whole_in_order_and_differ_by_one_at_most(world):
    for n in range(23):
        parts = [list(range(n))[Part(rank, world).of(n)] for rank in range(world)]
        assert list(chain(*parts)) == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world", WORLDS)
def test_processes_train_on_the_batches_of_one(world):
    (alone,), parts = parts_of(1, shuffle=True), parts_of(world, shuffle=True)
    assert [list(chain(*batches)) for batches in zip(*parts, strict=True)] == list(alone)
    assert {len(order) for order in parts} == {4}


@pytest.mark.parametrize("world", [*WORLDS, 9])
def test_every_validation_image_is_seen_once(world):
    parts = parts_of(world, shuffle=False)
    assert sorted(chain(*chain(*parts))) == INDICES.tolist()
    assert all(len(list(order)) == len(order) and all(order) for order in parts)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    population = populations.get("common-test-i", ["field.n_pixels=24"])
    return generate(population, tmp_path_factory.mktemp("stores") / "s", n_per_class=11, seed=1)


STREAM = ["kind=stream", "population=common-test-i", "overrides=[field.n_pixels=24]", "images_per_epoch=21"]


@pytest.mark.parametrize("kind", ["store", "stream"])
def test_several_processes_are_given_the_images_of_one(kind, store):
    changes = [f"data.{c}" for c in (*STREAM, "validation_images=8", "workers=0")] if kind == "stream" else []
    recipe = get("resnet_simple", ["stages.0.batch_size=7", *changes])
    stage = recipe.stages[0]

    def seen(part, which):
        source = source_of(recipe.data, recipe.stages, store if kind == "store" else None, seed=4)
        return list(source.loaders(stage, 0, 1, part)[which])

    batches = zip(seen(Part(), 0), seen(Part(0, 2), 0), seen(Part(1, 2), 0), strict=True)
    for (images, labels), *parts in batches:
        assert torch.equal(images, torch.cat([own for own, _ in parts]))
        assert torch.equal(labels, torch.cat([own for _, own in parts]))
    alone, *shared = (
        [(image.numpy().tobytes(), int(label)) for batch in seen(part, 1) for image, label in zip(*batch, strict=True)]
        for part in (Part(), Part(0, 2), Part(1, 2))
    )
    assert sorted(alone) == sorted(chain(*shared)) and all(shared)


@pytest.mark.parametrize("augment", [Affine(), Dihedral()])
def test_an_image_is_moved_as_it_would_be_in_the_whole_batch(augment):
    images = torch.rand(7, 1, 20, 20, generator=torch.Generator().manual_seed(2))

    def moved(part):
        rows, generator = part.of(7), torch.Generator().manual_seed(3)
        return Preprocess(crop=16).augmented(images[rows], augment, BatchRandom(generator, rows.start, 7))

    whole = Preprocess(crop=16).augmented(images, augment, BatchRandom(torch.Generator().manual_seed(3)))
    assert torch.equal(torch.cat([moved(Part(rank, 3)) for rank in range(3)]), whole)


ELASTIC = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[0-1]",
    "SLURM_JOB_ID": "7421234",
}


def test_torchrun_and_slurm_say_where_a_process_stands():
    assert place_of(ELASTIC) == Place(5, 8, 1, 4, "node0", 1234)
    assert place_of(SLURM) == Place(5, 8, 1, 4, "node0", 16234)
    assert place_of(SLURM | {"MASTER_PORT": "99"}).port == 99
    assert place_of({}) == ALONE.place == Place()


def test_a_job_script_that_runs_without_srun_is_alone():
    assert place_of({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}) == Place()


def test_nodes_with_different_numbers_of_tasks_are_refused():
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        place_of(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "5,3"})
    with pytest.raises(ConfigError, match="the same number on each"):
        place_of(ELASTIC | {"WORLD_SIZE": "7"})


def test_fewer_gpus_than_processes_are_refused(monkeypatch):
    from darklens.training import processes

    monkeypatch.setattr(processes.torch, "cuda", SimpleNamespace(is_available=lambda: True, device_count=lambda: 1))
    for name, value in ELASTIC.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"4 processes on .* see 1 of its GPUs"), processes.joined():
        pass
