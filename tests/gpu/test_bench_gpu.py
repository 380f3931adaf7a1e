"""The benchmark of GPUs, on the pretend device with few images."""

import importlib.util
import json
from pathlib import Path

import pytest
from pretend_device import pretend_device

pytestmark = pytest.mark.sweep

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCHMARKS / "bench_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(bench_gpu, monkeypatch, path, *words):
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", "--json", str(path), *words])
    with pretend_device():
        bench_gpu.main()
    return json.loads(path.read_text())["gpu"]


def test_each_task_is_measured_on_both_devices(bench_gpu, monkeypatch, tmp_path):
    tasks = ("simulate", "fit_macro", "train resnet_simple", "infer sis_autoencoder2")
    monkeypatch.setattr(bench_gpu, "TASKS", {name: bench_gpu.TASKS[name] for name in tasks})
    figures = run(bench_gpu, monkeypatch, tmp_path / "a.json", "--quick")
    assert figures["device"] == "pretend device" and figures["theta_E_difference_arcsec"] == 0
    for task in tasks:
        assert figures[task]["vs_cpu"] == pytest.approx(figures[task]["per_s"] / figures[task]["cpu_per_s"], abs=0.006)


def test_it_stops_when_its_time_is_over(bench_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_gpu, "difference", lambda device: 0.0)
    figures = run(bench_gpu, monkeypatch, tmp_path / "a.json", "--minutes", "0")
    assert not set(figures) & set(bench_gpu.TASKS)
