"""Every part of every system as an ONNX file."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commandline import darklens
from onnx import helper

from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.data.preprocess import Preprocess
from darklens.errors import ConfigError, DarklensError
from darklens.export import export_onnx
from darklens.models import resnet_18
from darklens.models.autoencoder import AutoencoderConfig
from darklens.models.ensemble import EnsembleConfig
from darklens.models.informed import SISAutoencoder2Config, SISAutoencoderConfig
from darklens.models.resnet_18 import ResNet18Config
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.models.transformer import TransformerConfig
from darklens.models.two_stage import TwoStageConfig

# The exporter takes up to ten seconds for each; predict/test_backends.py exports resnet_simple. All but the first
# are left to the sweep.
EXPORTED = {
    "autoencoder": AutoencoderConfig(latent=32),
    "sis_autoencoder2": SISAutoencoder2Config(k_network=TransformerConfig(width=16, depth=1)),
    "two_stage": TwoStageConfig(),
    "ensemble": EnsembleConfig(members=(ResNetSimpleConfig(), ResNet18Config(legacy=True))),
    "sis_autoencoder": SISAutoencoderConfig(k_network=AutoencoderConfig(latent=32)),
    "sis_autoencoder2 exact gather": SISAutoencoder2Config(
        k_network=AutoencoderConfig(latent=32), grad_k="exact", reduction="gather", classifier=ResNet18Config()
    ),
}
KINDS = [pytest.param(kind, marks=[pytest.mark.sweep] * (i > 0)) for i, kind in enumerate(EXPORTED)]


@pytest.fixture(autouse=True)
def _two_stages_of_resnet_18(monkeypatch):
    monkeypatch.setattr(resnet_18, "_WIDTHS", (8, 16))


def bundle_of(config):
    size = {"n_pixels": 100, "pixel_scale": 0.05, "preprocess": Preprocess(crop=96, bin=2)}
    contract = Contract.untrained(config, **size, recipe="r")
    torch.manual_seed(0)
    return Bundle(contract, contract.build())


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_file_takes_raw_images_and_gives_what_torch_gives(kind, tmp_path, capsys):
    bundle, folder = bundle_of(EXPORTED[kind]), tmp_path / "folder"
    bundle.save(tmp_path / "bundle")
    folder.mkdir()
    assert darklens("export", tmp_path / "bundle", "--onnx", folder / "m.onnx") == 0
    printed = capsys.readouterr().out
    assert "of PyTorch" in printed and " 0.0 MB" not in printed and (" kB, " in printed or " MB, " in printed)
    session = onnxruntime.InferenceSession(folder / "m.onnx")
    images = np.random.default_rng(1).poisson(30, (3, 1, 100, 100)).astype(np.float32)
    found = session.run(None, {"image": images})[0]
    if bundle.contract.task == "classify":
        np.testing.assert_allclose(found, bundle.probabilities(images), atol=1e-4)
    else:
        np.testing.assert_allclose(found, bundle.run(images)[1].numpy(), atol=1e-4)
    kept = {entry.key: entry.value for entry in onnx.load(str(folder / "m.onnx")).metadata_props}
    assert json.loads(kept["darklens"])["classes"] == ["no", "sphere", "vort"]
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]


def test_an_absent_model_is_not_exported(tmp_path):
    assert darklens("export", tmp_path / "absent", "--onnx", tmp_path / "m.onnx") != 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    constant = helper.make_node("Constant", [], ["probability"], value_floats=[0.2, 0.5, 0.3])
    ends = [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 1, 100, 100])]
    ends.append(helper.make_tensor_value_info("probability", onnx.TensorProto.FLOAT, [3]))
    proto = helper.make_model(helper.make_graph([constant], "g", ends[:1], ends[1:]), ir_version=8)
    program = SimpleNamespace(save=lambda path, **_: onnx.save(proto, path))
    monkeypatch.setattr("darklens.export.onnx_program", lambda *_: program)
    with pytest.raises(DarklensError, match="nothing was written"):
        export_onnx(bundle_of(ResNet18Config()), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime; install it with: pip install 'darklens\[onnx\]'"):
        export_onnx(bundle_of(ResNet18Config()), tmp_path / "m.onnx")
