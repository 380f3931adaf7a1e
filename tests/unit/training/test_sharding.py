"""The images of each process of a distributed training, and its rank."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.data.batch_slice import BatchSlice
from darklens.data.loaders import BatchOrder
from darklens.data.preprocess import Affine, BatchRandom, Dihedral, Preprocess
from darklens.errors import ConfigError
from darklens.simulate.generate import generate
from darklens.training.processes import SINGLE_PROCESS, Rank, rank_from
from darklens.training.recipe import get
from darklens.training.sources import source_of

INDICES = np.arange(100, 147)
WORLD_SIZES = [1, 2, 3, 5]


def orders_of(world_size, **settings):
    slices = [BatchSlice(rank, world_size) for rank in range(world_size)]
    orders = [BatchOrder(INDICES, 10, seed=1, batch_slice=batch_slice, **settings) for batch_slice in slices]
    for order in orders:
        order.set_epoch(3)
    return orders


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_shares_are_contiguous_and_their_sizes_differ_by_at_most_one(world_size):
    for n in range(23):
        shares = [list(range(n))[BatchSlice(rank, world_size).of(n)] for rank in range(world_size)]
        assert list(chain(*shares)) == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_processes_share_the_batches_of_a_single_process(world_size):
    (single,), orders = orders_of(1, shuffle=True), orders_of(world_size, shuffle=True)
    assert [list(chain(*batches)) for batches in zip(*orders, strict=True)] == list(single)
    assert {len(order) for order in orders} == {4}


@pytest.mark.parametrize("world_size", [*WORLD_SIZES, 9])
def test_every_validation_image_occurs_once(world_size):
    orders = orders_of(world_size, shuffle=False)
    assert sorted(chain(*chain(*orders))) == INDICES.tolist()
    assert all(len(list(order)) == len(order) and all(order) for order in orders)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    population = populations.get("common-test-i", ["field.n_pixels=24"])
    return generate(population, tmp_path_factory.mktemp("stores") / "s", n_per_class=11, seed=1)


STREAM = ["kind=stream", "population=common-test-i", "overrides=[field.n_pixels=24]", "images_per_epoch=21"]


@pytest.mark.parametrize("kind", ["store", "stream"])
def test_two_processes_share_the_images_of_a_single_process(kind, store):
    overrides = [f"data.{c}" for c in (*STREAM, "validation_images=8", "workers=0")] if kind == "stream" else []
    recipe = get("resnet_simple", ["stages.0.batch_size=7", *overrides])
    stage = recipe.stages[0]

    def batches_of(batch_slice, loader):
        source = source_of(recipe.data, recipe.stages, store if kind == "store" else None, seed=4)
        return list(source.loaders(stage, 0, 1, batch_slice)[loader])

    slices = BatchSlice(), BatchSlice(0, 2), BatchSlice(1, 2)
    for (images, labels), *shares in zip(*(batches_of(batch_slice, 0) for batch_slice in slices), strict=True):
        assert torch.equal(images, torch.cat([share for share, _ in shares]))
        assert torch.equal(labels, torch.cat([share for _, share in shares]))
    single, *shared = (
        [
            (image.numpy().tobytes(), int(label))
            for batch in batches_of(batch_slice, 1)
            for image, label in zip(*batch, strict=True)
        ]
        for batch_slice in slices
    )
    assert sorted(single) == sorted(chain(*shared)) and all(shared)


@pytest.mark.parametrize("augment", [Affine(), Dihedral()])
def test_an_image_is_augmented_as_in_the_whole_batch(augment):
    images = torch.rand(7, 1, 20, 20, generator=torch.Generator().manual_seed(2))

    def augmented(batch_slice):
        rows, generator = batch_slice.of(7), torch.Generator().manual_seed(3)
        return Preprocess(crop=16).augmented(images[rows], augment, BatchRandom(generator, rows.start, 7))

    whole = Preprocess(crop=16).augmented(images, augment, BatchRandom(torch.Generator().manual_seed(3)))
    assert torch.equal(torch.cat([augmented(BatchSlice(rank, 3)) for rank in range(3)]), whole)


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


def test_the_rank_comes_from_torchrun_or_slurm():
    assert rank_from(ELASTIC) == Rank(5, 8, 1, 4, "node0", 1234)
    assert rank_from(SLURM) == Rank(5, 8, 1, 4, "node0", 16234)
    assert rank_from(SLURM | {"MASTER_PORT": "99"}).main_port == 99
    assert rank_from({}) == SINGLE_PROCESS.rank == Rank()


def test_a_job_script_without_srun_is_a_single_process():
    assert rank_from({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}) == Rank()


def test_nodes_with_different_numbers_of_tasks_are_refused():
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        rank_from(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "5,3"})
    with pytest.raises(ConfigError, match="the same number on each"):
        rank_from(ELASTIC | {"WORLD_SIZE": "7"})


def test_fewer_gpus_than_processes_are_refused(monkeypatch):
    from darklens.training import processes

    monkeypatch.setattr(processes.torch, "cuda", SimpleNamespace(is_available=lambda: True, device_count=lambda: 1))
    for name, value in ELASTIC.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"4 processes on .* see 1 of its GPUs"), processes.process_group("cuda"):
        pass
