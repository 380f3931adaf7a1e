"""Devices by name, and the sentences for those that do not exist."""

import numpy as np
import pytest
import torch
from pretend_device import pretend_device

from darklens import Bundle, Observation, Scene, Sersic, fit
from darklens.cli import main
from darklens.devices import full_float32, require_device
from darklens.errors import ConfigError
from darklens.predict.backends import choose
from darklens.scene import SIS

ABSENT = "finds no CUDA device on this computer; use device cpu"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_devices_by_name():
    assert require_device("cpu") == require_device("cpu:0") == torch.device("cpu")
    with pretend_device():
        assert require_device("cuda") == require_device(torch.device("cuda:0")) == torch.device("cuda", 0)
        with pytest.raises(ConfigError, match="no device cuda:1 on this computer, which has cuda:0 alone"):
            require_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cuda:", "cuda:-1", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="The device must be cpu, cuda or cuda:N, not"):
        require_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_an_absent_device_is_one_sentence(name):
    with pytest.raises(ConfigError, match=ABSENT):
        require_device(name)
    with pytest.raises(ConfigError, match=ABSENT):
        Bundle.load("lens_residual", device=name)


def test_onnx_on_a_gpu_is_refused():
    bundle = Bundle.load("lens_residual")
    for name in ("onnx", "int8"):
        with pytest.raises(ConfigError, match=f"The backend {name} computes on the CPU; use device cpu"):
            choose(name, bundle, 10, "cuda")
    assert choose("auto", bundle, 10**6, "cuda") == "eager"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A store and an image file."""
    from darklens import populations
    from darklens.simulate.generate import generate

    folder = tmp_path_factory.mktemp("inputs")
    store = generate(populations.get("common-test-i"), folder / "store", n_per_class=4, seed=5)
    np.save(folder / "lens.npy", store.images([0])[0, 0])
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "predict lens.npy --out t.csv",
        "predict lens.npy --out t.csv --maps maps",
        "evaluate lens_residual store --out e",
        "calibrate lens_residual store --out c",
        "simulate common-test-i --out s --n-per-class 1",
        "train resnet_simple --data store --out r",
        "tune resnet_simple --data store --out r",
        "serve lens_residual --port 0",
    ],
)
def test_commands_refuse_an_absent_device_before_any_work(words, inputs, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    before = set(inputs.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main([*words.split(), "--device", "cuda"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().endswith("and a CUDA build of PyTorch.")
    assert set(inputs.iterdir()) == before


def test_tf32_is_off_in_a_block_alone():
    allowed = torch.backends.cudnn.allow_tf32
    with full_float32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_a_scene_fit_refuses_an_absent_device():
    observation = Observation.of(np.ones((12, 12)), noise_map=1.0, pixel_scale=0.1)
    with pytest.raises(ConfigError, match=ABSENT):
        fit(observation, Scene([SIS()], [Sersic()]), device="cuda")
