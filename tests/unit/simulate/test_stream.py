"""Images simulated while a model trains: never the same one twice, the same ones for the same seed."""

from itertools import chain

import numpy as np
import pytest
from spawning import prepared_processes
from torch.utils.data import DataLoader

from darklens import populations
from darklens.data.batch_slice import BatchSlice
from darklens.simulate.batch import simulate_batch
from darklens.simulate.stream import FreshBatches, Simulated

POPULATION = populations.get("common-test-i", ["field.n_pixels=24"])


def numbers(order, epochs):
    found = []
    for epoch in range(epochs):
        order.set_epoch(epoch)
        found += [number for batch in order for number in batch]
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_image_comes_twice_and_none_is_left_out(world):
    parts = [numbers(FreshBatches(6, 5, batch_slice=BatchSlice(rank, world)), 4) for rank in range(world)]
    together = [number for part in parts for number in part]
    assert sorted(together) == list(range(4 * 6 * 5))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world):
    alone, parts = (
        FreshBatches(7, 5),
        [FreshBatches(7, 5, batch_slice=BatchSlice(rank, world)) for rank in range(world)],
    )
    assert [list(chain(*batches)) for batches in zip(*parts, strict=True)] == list(alone)
    with pytest.raises(ValueError, match="5 images cannot be shared by 9"):
        FreshBatches(7, 5, batch_slice=BatchSlice(0, 9))


def test_a_resumed_epoch_is_the_same_epoch():
    order = FreshBatches(3, 4)
    all_epochs = numbers(order, 3)
    order.set_epoch(2)
    assert [n for batch in order for n in batch] == all_epochs[24:]


def test_repeated_batches_are_those_of_the_first_epoch():
    order = FreshBatches(3, 4, repeat=True)
    first = list(order)
    order.set_epoch(2)
    assert list(order) == first


def test_batches_hold_the_images_and_labels_of_their_numbers():
    images, labels = Simulated(POPULATION, 5)[[3, 4, 11]]
    expected, truth = simulate_batch(POPULATION, 5, [3, 4, 11])
    assert np.array_equal(images.numpy(), expected) and labels.tolist() == truth["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_for_any_number_of_workers(workers):
    order = FreshBatches(3, 4, batch_slice=BatchSlice(1, 2))
    context = prepared_processes("torch") if workers else None
    options = {"batch_size": None, "num_workers": workers, "multiprocessing_context": context}
    loaded = list(DataLoader(Simulated(POPULATION, 5), sampler=order, **options))
    for start, (images, _) in zip((2, 6, 10), loaded, strict=True):
        assert np.array_equal(images.numpy(), simulate_batch(POPULATION, 5, [start, start + 1])[0])
