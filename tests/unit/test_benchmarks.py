"""The table of the benchmarks, the study's training, and the clock of time to quality."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

from experiments import time_to_quality

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_benchmark_is_taken_for_a_library():
    """numba looks for one called coverage, and a script's own folder is searched first."""
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert {name for name in names if not name.startswith("bench_")} == {"record", "run", "study_training"}


def test_the_table_has_a_line_for_what_was_measured_and_no_other():
    bench = {
        "hardware": "a laptop",
        "commits": {"train": "abc"},
        "train": {"resnet_18": {"vs_study": 1.5, "ours_ms_per_image": 80.0}},
        "infer": {
            "resnet_18": {
                "images_per_s": {"onnx": 20.0, "int8": 40.0, "eager_batch_64": 10.0},
                "ratios": {"batch_64": {"onnx": 2.0, "int8": 4.0}, "batch_1": {"onnx": 3.0, "int8": 6.0}},
            },
            "lens_residual": {"images_per_s": 12.0},
            "cold_predict": {"wall_s": 5.5},
            "batch": 64,
        },
        "versions": {
            "images": 96,
            "abc1234": {"times_as_fast_here": 4.5},
            "here": {"times_as_fast_here": 1.0, "ms_per_image": {"all": 41.0}},
        },
        "gpu": {
            "device": "H100",
            "train resnet_18": {"per_s": 9000.0, "cpu_per_s": 90.0, "vs_cpu": 100.0},
            "fit_macro": {"per_s": 300.0},
        },
    }
    lines = script("run").table(bench).splitlines()
    assert "a laptop; GPU: H100" in lines[0]
    body = lines[4:]
    assert len(body) == 10
    assert body[7].split() == ["lens_residual", "without", "checks", "abc1234", "4.50", "41", "ms", "an", "image"]
    assert body[8].split() == ["train", "resnet_18", "on", "the", "GPU", "its", "CPU", "100.00", "9000", "images/s"]
    assert body[9].split() == ["fit", "macro", "on", "the", "GPU", "its", "CPU", "300", "images/s"]
    assert "infer resnet_18, int8" in body[2] and body[2].split()[-3:] == ["4.00", "40", "images/s"]
    assert body[6].split() == ["first", "prediction", "of", "a", "new", "process", "5.5", "s"]
    assert body[0].split() == [
        "train",
        "resnet_18",
        "the",
        "study's",
        "training",
        "1.50",
        "80",
        "ms",
        "an",
        "image",
        "abc",
    ]


def test_the_study_augments_one_image_at_a_time_and_keeps_its_range(tmp_path):
    study_training = script("study_training")
    image = np.zeros((1, 40, 40), np.float32)
    image[0, 18:22, 18:22] = np.arange(16).reshape(4, 4) + 5
    np.save(tmp_path / "0.npy", image)
    unchanged, label = study_training.ImageFiles(tmp_path, [2], augment=False)[0]
    assert label == 2 and unchanged.min() == 0 and unchanged.max() == 1
    torch.manual_seed(0)
    augmented = [study_training.ImageFiles(tmp_path, [2])[0][0] for _ in range(4)]
    assert all(set(m.unique().tolist()) <= set(unchanged.unique().tolist()) for m in augmented)  # nearest pixel
    lit = [int((m > 0).sum()) for m in augmented]
    assert len(set(lit)) > 1 and all(16 * 0.8**2 * 0.6 < n < 16 * 1.2**2 * 1.4 for n in lit)


def test_processor_time_is_read_at_each_epoch(tmp_path, monkeypatch):
    metrics = tmp_path / "metrics.csv"
    program = (
        "import sys, time\n"
        "rows = ['stage,epoch,val_auc', '0,0,', '1,0,0.6', '1,1,0.7']\n"
        "for k in range(2, 5):\n"
        "    end = time.process_time() + 0.3\n"
        "    while time.process_time() < end: pass\n"
        "    open(sys.argv[1], 'w').write('\\n'.join(rows[:k]) + '\\n')\n"
        "    time.sleep(0.8)\n"
    )
    monkeypatch.setattr(time_to_quality.engine, "ROOT", tmp_path)
    points = time_to_quality.watched([sys.executable, "-c", program, str(metrics)], metrics, before=60.0)
    assert [p["val_auc"] for p in points] == [0.6, 0.7]
    minutes = [p["cpu_minutes"] for p in points]
    assert 1 + 0.55 / 60 < minutes[0] < minutes[1] < 1.5


def test_every_benchmark_is_a_script():
    scripts = script("run").SCRIPTS
    assert set(scripts) >= {"simulate", "train", "infer", "fit", "loader", "memory", "startup"}
    assert all((BENCHMARKS / name).exists() for name, _, _ in scripts.values())
