"""Commands with --device cuda, on a pretend device."""

import csv

import numpy as np
import pytest
import torch
from pretend_device import CUDA, pretend_device
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy

from darklens import Bundle, populations
from darklens.cli import main
from darklens.data.store import Store
from darklens.fit.features import FitFeatures
from darklens.serve.batching import Job
from darklens.serve.classifier import Classifier
from darklens.simulate.generate import generate
from darklens.training.processes import Processes

pytestmark = pytest.mark.sweep  # a minute of processor time; other tests run the parts

SMALL = ["stages.0.epochs=2", "stages.0.batch_size=4", "stages.0.ema_decay=0.9", "data.preprocess.crop=50"]
FIELD = "field.n_pixels=64"


class PretendAccelerator(CPUAccelerator):
    """Lightning's accelerator for the CPU, on the pretend device."""

    def setup_device(self, device):
        assert device == CUDA


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Stores of the shipped model's population, two of them with smaller images to train with, and image files."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, n, seed, overrides in (("store", 4, 5, [FIELD]), ("other", 4, 6, [FIELD]), ("few", 1, 7, [])):
        store = generate(populations.get("common-test-i", overrides), folder / name, n_per_class=n, seed=seed)
    for i in range(2):
        np.save(folder / f"lens{i}.npy", store.images([i])[0, 0])
    return folder


def run(words):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 0


def numbers_of(path):
    """Return the numbers in a table."""
    rows = list(csv.DictReader(path.open()))
    return np.array([float(v) for row in rows for k, v in row.items() if k.startswith("p_")])


def test_predict_writes_the_probabilities_of_the_cpu(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs)
    run(f"predict lens0.npy lens1.npy --out {tmp_path}/cpu.csv")
    with pretend_device() as device:
        run(f"predict lens0.npy lens1.npy --out {tmp_path}/gpu.csv --device cuda")
        assert device.uploads > 0
        run(f"predict lens0.npy --out {tmp_path}/maps.csv --maps {tmp_path}/maps --device cuda:0")
    assert (tmp_path / "cpu.csv").read_bytes() == (tmp_path / "gpu.csv").read_bytes()
    assert len(numbers_of(tmp_path / "gpu.csv")) == 6 and len(list((tmp_path / "maps").iterdir())) == 2


def test_evaluate(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("darklens.report.figures.to_png", lambda figure: b"")  # as slow as all else
    with pretend_device():
        run(f"evaluate lens_residual {inputs}/few --out {tmp_path}/results --device cuda")
    store, bundle = Store(inputs / "few"), Bundle.load("lens_residual")
    expected = bundle.probabilities(store.images(range(len(store))))
    assert np.allclose(
        numbers_of(tmp_path / "results" / "predictions.csv").reshape(expected.shape), expected, atol=2e-6
    )


def test_simulate_records_the_device(tmp_path):
    with pretend_device():
        run(f"simulate common-test-i --out {tmp_path}/gpu --n-per-class 2 --device cuda field.n_pixels=32")
    store = Store(tmp_path / "gpu")
    reference = generate(
        populations.get("common-test-i", ["field.n_pixels=32"]), tmp_path / "cpu", n_per_class=2, seed=0
    )
    assert (store.index.backend, reference.index.backend) == ("eager, cuda", "eager")
    assert np.array_equal(store.truth("theta_E"), reference.truth("theta_E"))
    # The same lenses with other photon noise.
    assert not np.array_equal(store.images(range(6)), reference.images(range(6)))
    assert np.corrcoef(store.images(range(6)).ravel(), reference.images(range(6)).ravel())[0, 1] > 0.8


@pytest.mark.parametrize("recipe", ["resnet_simple", "lens_residual"])
def test_train_and_calibrate(recipe, inputs, tmp_path, monkeypatch):
    """All of a training but Lightning's CUDA accelerator and pinned memory, which need a driver."""
    plain = Processes.trainer_arguments

    def trainer_arguments(self):
        assert self.device == CUDA
        arguments = plain(self)
        assert (arguments.pop("accelerator"), arguments.pop("devices")) == ("cuda", [0])
        return arguments | {"strategy": SingleDeviceStrategy(CUDA, accelerator=PretendAccelerator())}

    pinned = []
    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", _recording(pinned))
    overrides = " ".join(SMALL if recipe == "resnet_simple" else [*SMALL[:3], f"model.overrides=[{FIELD}]"])
    overrides += " precision=float32"  # with AMX the processor alone would choose bfloat16
    command = f"train {recipe} --data {inputs}/store --seed 3 {overrides}"
    run(f"{command} --out {tmp_path}/cpu")
    assert not any(pinned)
    with pretend_device():
        monkeypatch.setattr(Processes, "trainer_arguments", trainer_arguments)
        run(f"{command} --out {tmp_path}/gpu --device cuda")
        if recipe == "resnet_simple":
            run(f"calibrate {tmp_path}/gpu {inputs}/other --out {tmp_path}/calibrated --device cuda")
    assert any(pinned)
    weights = [Bundle.load(tmp_path / name).network.state_dict() for name in ("cpu", "gpu")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def _recording(pinned):
    plain = torch.utils.data.DataLoader.__init__

    def init(self, *arguments, pin_memory=False, **options):
        pinned.append(pin_memory)
        plain(self, *arguments, **options)

    return init


def test_the_server_classifies_with_maps(inputs):
    image = np.load(inputs / "lens0.npy")
    job = Job(name="lens", pixels=image, maps=True)
    with pretend_device():
        result = Classifier(Bundle.load("lens_residual", device="cuda"))([job])[0]
    expected = Classifier(Bundle.load("lens_residual"))([job])[0]
    assert result == expected and {"smooth", "evidence_line"} <= set(result.maps)


def test_features_move_together():
    features = FitFeatures(torch.ones(1, 6, 4, 4), torch.ones(1, 3))
    with pretend_device():
        moved = features.to(torch.device("cuda"))
        assert {v.device for v in moved} == {CUDA}
