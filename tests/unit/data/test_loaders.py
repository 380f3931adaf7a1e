from itertools import chain

import numpy as np
import pytest

from darklens.data.loaders import BatchOrder, split
from darklens.errors import InputError

LABELS = np.arange(300) % 3


def test_the_split_is_ninety_to_ten_in_every_class_and_disjoint():
    parts = split(LABELS, validation_fraction=0.1, seed=0)
    assert len(parts.train) == 270 and len(parts.validation) == 30
    assert not set(parts.train) & set(parts.validation)
    assert sorted([*parts.train, *parts.validation]) == list(range(300))
    assert np.bincount(LABELS[parts.validation]).tolist() == [10, 10, 10]


def test_the_split_follows_the_seed():
    a, b, c = (split(LABELS, validation_fraction=0.1, seed=s).validation.tolist() for s in (0, 0, 1))
    assert a == b != c


def test_too_few_images_of_a_class_are_an_error():
    labels = np.repeat([0, 1], [20, 12])
    with pytest.raises(InputError, match=r"data.n_per_class: class 1 has 12 images, fewer than 15"):
        split(labels, validation_fraction=0.1, seed=0, n_per_class=15)
    parts = split(labels, validation_fraction=0.25, seed=0, n_per_class=12)
    assert len(parts.train) == 18 and len(parts.validation) == 6


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(InputError, match="Class 1 has 1 images"):
        split(np.array([0, 0, 0, 1]), validation_fraction=0.1, seed=0)


def test_each_epoch_has_another_order_of_the_same_images():
    order = BatchOrder(np.arange(100, 120), 5, shuffle=True, seed=1)
    first = list(order)
    assert list(order) == first
    order.set_epoch(1)
    second = list(order)
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(100, 120))
    assert all(len(block) == 5 for block in first)


def test_shuffled_batches_are_full_and_ordered_ones_complete():
    assert [len(b) for b in BatchOrder(np.arange(11), 4, shuffle=True)] == [4, 4]
    assert [len(b) for b in BatchOrder(np.arange(3), 4, shuffle=True)] == [3]
    assert list(chain(*BatchOrder(np.arange(11), 4, shuffle=False))) == list(range(11))
