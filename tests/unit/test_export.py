"""Every system as an ONNX file."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.data.preprocess import Preprocess
from darklens.errors import ConfigError, DarklensError
from darklens.export import export_onnx
from tests.unit.models.test_models import CONFIGS


def bundle_of(config):
    size = {"n_pixels": 100, "pixel_scale": 0.05, "preprocess": Preprocess(crop=96, bin=2)}
    contract = Contract.untrained(config, **size, recipe="r")
    torch.manual_seed(0)
    return Bundle(contract, contract.build())


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_an_exported_file_takes_raw_images_and_gives_what_torch_gives(kind, tmp_path):
    bundle = bundle_of(CONFIGS[kind])
    assert export_onnx(bundle, tmp_path / "m.onnx") <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    images = np.random.default_rng(1).poisson(30, (3, 1, 100, 100)).astype(np.float32)
    found = session.run(None, {"image": images})[0]
    if bundle.contract.task == "classify":
        np.testing.assert_allclose(found, bundle.probabilities(images), atol=1e-4)
    else:
        np.testing.assert_allclose(found, bundle.run(images)[1].numpy(), atol=1e-4)
    kept = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    assert json.loads(kept["darklens"])["classes"] == ["no", "sphere", "vort"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("darklens.export.TOLERANCE", -1.0)
    with pytest.raises(DarklensError, match="nothing was written"):
        export_onnx(bundle_of(CONFIGS["resnet_simple"]), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime; install it with: pip install 'darklens\[onnx\]'"):
        export_onnx(bundle_of(CONFIGS["resnet_simple"]), tmp_path / "m.onnx")
