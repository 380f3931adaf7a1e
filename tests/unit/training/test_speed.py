"""Stages with smaller images, compiled networks, and the fast recipes."""

import copy
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from darklens.compilation import compile_network, compiler
from darklens.data.store import Store, StoreIndex, write_index, write_shard
from darklens.errors import ConfigError
from darklens.models.resnet_18 import ResNet18
from darklens.recipes import names
from darklens.training.recipe import get
from darklens.training.run import train

PIXELS = 68
TWO_SIZES = [
    'stages=[{"task":"classify","epochs":1,"batch_size":8,"bin":2},{"task":"classify","epochs":1,"batch_size":8}]',
    "data.augment.kind=none",
]


@pytest.fixture
def store(tmp_path):
    images = np.random.default_rng(0).random((30, 1, PIXELS, PIXELS), dtype=np.float32)
    shard = write_shard(tmp_path / "s", 0, images, {"label": np.arange(30) % 3})
    classes = ["no", "sphere", "vort"]
    index = StoreIndex(classes=classes, n_pixels=PIXELS, pixel_scale=0.1, version="0", shards=[shard])
    write_index(tmp_path / "s", index)
    return Store(tmp_path / "s")


def test_a_first_stage_can_use_smaller_images(store, tmp_path, monkeypatch):
    calls = []
    forward = ResNet18.forward

    def recorded(self, images):
        calls.append((self.training, images))
        return forward(self, images)

    monkeypatch.setattr(ResNet18, "forward", recorded)
    monkeypatch.setattr("darklens.models.resnet_18._WIDTHS", (8, 8, 16, 16))
    bundle = train(get("resnet_18", TWO_SIZES), store, tmp_path / "r")
    sizes = [images.shape[-1] for training, images in calls if training]
    assert sizes[0] == PIXELS // 2 and sizes[-1] == PIXELS
    small = calls[0][1][0, 0]
    images = bundle.contract.preprocess.normalise(torch.from_numpy(store.images(range(30))))
    blocks = images.reshape(30, PIXELS // 2, 2, PIXELS // 2, 2).mean((2, 4))
    assert (blocks - small).abs().amax((1, 2)).min() < 1e-6  # block averages, not every other pixel
    assert bundle.probabilities(store.images([0])).shape == (1, 3)


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        ("resnet_simple_fine_tuned", ["stages.0.bin=2"], "takes images of one size"),
        ("resnet_18", ["stages.0.bin=2"], "the last must have bin 1"),
    ],
)
def test_smaller_images_in_the_wrong_stage_or_network_are_refused(recipe, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        get(recipe, overrides)


@pytest.mark.parametrize(("size", "sentence"), [(3, "cannot be divided"), (4, "17 pixels remain")])
def test_blocks_must_divide_the_images(store, tmp_path, size, sentence):
    recipe = get("resnet_18", [TWO_SIZES[0].replace('"bin":2', f'"bin":{size}')])
    with pytest.raises(ConfigError, match=sentence):
        train(recipe, store, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_compiling_a_network_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        compile_network(nn.Linear(2, 2), torch.device("cpu"))


def test_a_compiled_network_has_the_same_weights_and_outputs():
    if compiler() is None:
        pytest.skip("no C++ compiler")
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, names_before = torch.rand(5, 4), list(network.state_dict())
    expected = network(x)
    compile_network(network, torch.device("cpu"))
    torch.testing.assert_close(network(x), expected)
    assert list(network.state_dict()) == names_before
    torch.testing.assert_close(copy.deepcopy(network)(x), expected)


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("fast_")])
def test_fast_recipes_end_with_annealing_and_averaging(name):
    last = get(name).stages[-1]
    assert last.schedule.kind == "one_cycle" and last.ema_decay > 0
