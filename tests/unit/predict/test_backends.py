"""Inference backends agree with torch eager; the choice of a backend; errors."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from archives import PIXELS, fill, rings, small_bundle

from darklens.compilation import compiler
from darklens.errors import ConfigError, DarklensError
from darklens.models.base import WithFeatures
from darklens.models.informed import SISAutoencoder2Config
from darklens.models.lens_residual import LensResidualConfig
from darklens.predict import backends, predict_table
from darklens.predict.backends import TOLERANCE, backend_of, choose, write_model


@pytest.fixture(scope="module")
def exported():
    """A classifier and its ONNX program, exported once; the export is the slowest step of these tests."""
    bundle = small_bundle()
    images = torch.rand(2, 1, PIXELS, PIXELS)
    return bundle, backends.onnx_program(WithFeatures(bundle.network), images, ["logits", "features"])


def check(bundle, backend, images, atol):
    exact, result = bundle.classify(images), bundle.classify(images, backend)
    np.testing.assert_allclose(result.probabilities, exact.probabilities, atol=atol)
    assert (result.probabilities.argmax(1) == exact.probabilities.argmax(1)).all()
    return exact, result


def test_onnx_gives_the_same_probabilities_and_features(exported, tmp_path, monkeypatch):
    bundle, program = exported
    monkeypatch.setattr(backends, "onnx_program", lambda *_: program)
    images = rings(19)  # more than one micro-batch, and no multiple of it
    write_model("onnx", bundle, tmp_path / "m.onnx", images[:3])
    exact, result = check(bundle, backend_of("onnx", bundle, tmp_path / "m.onnx"), images, TOLERANCE)
    assert np.ptp(exact.probabilities, axis=0).max() > 1e-3  # the images differ
    np.testing.assert_allclose(
        result.ood_features, exact.ood_features, rtol=1e-3, atol=1e-4 * np.abs(exact.ood_features).max()
    )


@pytest.mark.sweep
@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_compiled_gives_the_same_probabilities_and_features(tmp_path):
    # In a separate process: torch.compile rejects functions with the type checks of pytest.
    script = f"""
import numpy as np
from archives import rings, small_bundle
from darklens.predict.backends import backend_of
bundle, images = small_bundle(), rings(19)
exact = bundle.classify(images)
result = bundle.classify(images, backend_of("compiled", bundle))
assert [h for m in bundle.network.modules() for h in m._forward_pre_hooks] == []  # the hooks are removed
arrays = {{"p": result.probabilities, "f": result.ood_features, "q": exact.probabilities, "g": exact.ood_features}}
np.savez({str(tmp_path / "result.npz")!r}, **arrays)
"""
    path = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, check=True)
    arrays = np.load(tmp_path / "result.npz")
    np.testing.assert_allclose(arrays["p"], arrays["q"], atol=TOLERANCE)
    np.testing.assert_allclose(arrays["f"], arrays["g"], rtol=1e-3, atol=1e-4 * np.abs(arrays["g"]).max())
    assert np.ptp(arrays["q"], axis=0).max() > 1e-3  # the images differ


def test_int8_is_close_and_too_large_a_change_raises(exported, tmp_path, monkeypatch):
    bundle, program = exported
    monkeypatch.setattr(backends, "onnx_program", lambda *_: program)
    images = rings(40)
    write_model("int8", bundle, tmp_path / "m.onnx", images)
    exact, result = bundle.classify(images), bundle.classify(images, backend_of("int8", bundle, tmp_path / "m.onnx"))
    difference = np.abs(result.probabilities - exact.probabilities)
    assert 0 < difference.max() < 0.1 and difference.mean() < 0.02
    monkeypatch.setattr(backends, "_LARGEST_INT8_CHANGE", 0.0)
    with pytest.raises(DarklensError, match="too inaccurate"):
        write_model("int8", bundle, tmp_path / "n.onnx", images)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_int8_quantises_only_products_where_all_operations_cannot_be(exported, tmp_path, monkeypatch):
    bundle, program = exported
    layers, quantise = [], backends._quantise

    def fail_once(path, inputs, only):
        layers.append(only)
        if only is None:
            raise RuntimeError
        quantise(path, inputs, only)

    monkeypatch.setattr(backends, "onnx_program", lambda *_: program)
    monkeypatch.setattr(backends, "_quantise", fail_once)
    write_model("int8", bundle, tmp_path / "m.onnx", rings(24))
    assert layers == [None, ["Conv", "Gemm", "MatMul"]]
    assert b"QLinearConv" in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.sweep
def test_int8_of_a_network_with_a_lens_step_is_close(tmp_path):
    bundle, images = small_bundle(SISAutoencoder2Config(), n_pixels=64), rings(24, 64)
    write_model("int8", bundle, tmp_path / "m.onnx", images)
    exact, result = bundle.classify(images), bundle.classify(images, backend_of("int8", bundle, tmp_path / "m.onnx"))
    difference = np.abs(result.probabilities - exact.probabilities)
    assert 0 < difference.max() < 0.1 and difference.mean() < 0.02
    assert b"QLinearConv" in (tmp_path / "m.onnx").read_bytes()


def test_an_onnx_file_that_differs_is_not_written(exported, tmp_path, monkeypatch):
    bundle, program = exported
    monkeypatch.setattr(backends, "onnx_program", lambda *_: program)
    monkeypatch.setattr(backends, "TOLERANCE", -1.0)
    with pytest.raises(DarklensError, match="use backend eager"):
        write_model("onnx", bundle, tmp_path / "m.onnx", rings(2))
    assert list(tmp_path.iterdir()) == []


def test_auto_chooses_onnx_only_for_many_images(monkeypatch):
    bundle, few, many = small_bundle(), backends.SMALLEST_ONNX_RUN - 1, backends.SMALLEST_ONNX_RUN
    assert choose("auto", bundle, few) == "eager" and choose("auto", bundle, many) == "onnx"
    assert choose("eager", bundle, many) == "eager"
    monkeypatch.setattr("darklens.export.find_spec", lambda _: None)
    assert choose("auto", bundle, many) == "eager"
    monkeypatch.setattr("darklens.compilation.compiler", lambda: None)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        choose("compiled", bundle, 1)


def test_a_network_that_cannot_be_exported_raises_or_falls_back_to_eager(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "onnx_program", lambda *_: 1 / 0)
    monkeypatch.setattr(backends, "SMALLEST_ONNX_RUN", 3)
    bundle = small_bundle()
    bundle.save(tmp_path / "model")
    fill(tmp_path / "files", 3)
    files = [str(path) for path in sorted((tmp_path / "files").iterdir())]
    with pytest.raises(ConfigError, match="cannot be written as ONNX"):
        predict_table(tmp_path / "model", files, tmp_path / "t.csv", backend="onnx")
    assert not list(tmp_path.glob("t.csv*"))
    assert predict_table(tmp_path / "model", files, tmp_path / "t.csv").bad == 0
    predict_table(tmp_path / "model", files, tmp_path / "e.csv", backend="eager")
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "e.csv").read_bytes()


def test_a_backend_that_cannot_run_raises(monkeypatch):
    fits = small_bundle(LensResidualConfig(population="common-test-i"), n_pixels=150)
    assert choose("auto", fits, 10**6) == "eager"
    for name in ("onnx", "int8"):
        with pytest.raises(ConfigError, match="ONNX cannot express"):
            choose(name, fits, 1)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"The onnx backend needs onnxruntime; install it"):
        choose("onnx", small_bundle(), 1)
