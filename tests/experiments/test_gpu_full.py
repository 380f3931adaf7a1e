"""The training script for a GPU, on the CPU with few small images."""

import numpy as np
import pytest
import torch
from safetensors.torch import load

from darklens.bundle import Bundle
from darklens.files import read_json
from darklens.training.recipe import get
from experiments import gpu_full

SIZES = ["--batch-size", "4", "--validation-images", "6", "--test-images", "6", "--workers", "0"]
TINY = [*SIZES, "--device", "cpu", "--minutes", "0.01", "--population-overrides", "field.n_pixels=44"]


def test_a_system_is_trained_in_all_stages_and_its_weights_become_a_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_full, "PART", 1 << 20)
    monkeypatch.setattr(gpu_full, "metrics_with_intervals", lambda labels, p, _: {"auc": p.shape, "accuracy": len(p)})
    gpu_full.main(["train", "--out", str(tmp_path), "--systems", "sis_autoencoder2", *TINY, "--no-compile"])
    result = read_json(tmp_path / "metrics.json")["sis_autoencoder2"]
    assert result["metrics"] == {"auc": [6, 3], "accuracy": 6}
    assert [point["scale"] for point in result["curve"]] == sorted([p["scale"] for p in result["curve"]], reverse=True)
    assert {point["scale"] for point in result["curve"]} == {10, 4, 2, 1}
    assert result["contract"]["provenance"]["train_images"] == result["curve"][-1]["images"] >= 6 * 4
    files = gpu_full.parts(tmp_path, "sis_autoencoder2")
    assert len(files) > 1 and max(file.stat().st_size for file in files) <= 1 << 20
    gpu_full.main(["bundle", str(tmp_path), "sis_autoencoder2", "--out", str(tmp_path / "bundle")])
    weights = Bundle.load(tmp_path / "bundle").network.state_dict()
    stored = load(b"".join(file.read_bytes() for file in files))
    assert all(torch.equal(value, stored[key].float()) for key, value in weights.items() if value.is_floating_point())


def test_the_rate_of_a_stage_rises_and_anneals():
    constant, annealed = get("resnet_simple_long").stages[-2:]
    assert gpu_full.relative_rate(constant, 0.0) == gpu_full.relative_rate(constant, 0.9) == 1
    first, peak, middle, last = (gpu_full.relative_rate(annealed, fraction) for fraction in (0, 0.02, 0.5, 1))
    assert peak == pytest.approx(1, abs=1e-3) and peak > middle > first > last


def test_images_are_those_of_the_population_and_never_repeat():
    recipe = get("resnet_simple_long", ["data.preprocess.crop=44"])
    population = gpu_full.populations.get("common-test-i", ["field.n_pixels=44"])
    truths = gpu_full.Truths(population, 1, 4)
    first, second = (labels for _, (_, labels) in zip(range(2), truths, strict=False))
    assert [*first, *second] == [i % 3 for i in range(8)]
    images, labels = gpu_full.Simulator(recipe, population, torch.device("cpu"), 1).images(truths, 6)
    assert [len(batch) for batch in images] == [4, 2] and len(labels) == 6
    flat = torch.cat(images).flatten(1)
    assert flat.amin() == 0 and flat.amax() == 1 and len(np.unique(flat.numpy(), axis=0)) == 6
