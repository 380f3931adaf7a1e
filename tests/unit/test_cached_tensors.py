"""Tensors that are cached in a prediction can be used by a training in the same process."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import darklens
from darklens import Bundle, populations
from darklens.fit import evidence, fitter
from darklens.models.zoo import build
from darklens.physics import optics
from darklens.scene.imaging import Detector
from darklens.scene.psf import PSF
from darklens.simulate import render
from darklens.simulate.batch import simulate_batch

SOURCES = Path(darklens.__file__).parent
CACHES = {"cache", "lru_cache", "cached_property"}
RETURNS_TENSORS = ("Tensor", "Fitter", "Detector", "Templates")
# Compiled functions, which hold no tensors.
EXEMPT = {"_fused"}


def tensors_in(value, seen=None):
    """All tensors in an object, its attributes and its elements."""
    seen = [] if seen is None else seen
    if any(value is other for other in seen):
        return
    seen.append(value)  # a reference, so that no other object gets its address
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from tensors_in(element, seen)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()), seen)
    elif type(value).__module__.startswith("darklens") and hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), seen)


def cached_functions():
    """Names of all cached functions of the package whose annotation says that they return tensors, with decorators."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or node.returns is None or node.name in EXEMPT:
                continue
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            cached = any(decorator.split("(")[0].split(".")[-1] in CACHES for decorator in decorators)
            if cached and any(word in ast.unparse(node.returns) for word in RETURNS_TENSORS):
                yield path.stem + "." + node.name, decorators


def test_every_cache_of_tensors_is_made_outside_inference_mode():
    found = dict(cached_functions())
    assert {"optics.gaussian_psf", "render.axes", "evidence.templates_of", "fitter._bank"} <= set(found)
    unsafe = [name for name, decorators in found.items() if "torch.inference_mode(False)" not in decorators]
    assert not unsafe


def test_caches_first_filled_in_inference_mode_hold_no_inference_tensors():
    population = populations.get("common-test-i", ["field.n_pixels=64"])
    for function in (optics.gaussian_psf, optics.convolution_matrix, render.axes, evidence.templates_of):
        function.cache_clear()
    fitter._cached_fitter.cache_clear()
    with torch.inference_mode():
        taps = optics.gaussian_psf(sigma=1.3)
        values = [
            taps,
            optics.convolution_matrix(16, tuple(taps.tolist()), torch.float32, torch.device("cpu")),
            render.axes(population.field, torch.float32, torch.device("cpu")),
        ]
        lens_fitter = fitter.fitter_of(population)
        values += [lens_fitter, lens_fitter.full, lens_fitter._bank, evidence.templates_of(lens_fitter)]
        imaging = Detector((16, 16), 0.05, psf=PSF.gaussian(fwhm=0.1, pixel_scale=0.05))
        imaging.observe(torch.rand(imaging.y.shape[0], imaging.x.shape[1]))
        values.append(imaging._transfers)
    tensors = list(tensors_in(values))
    assert len(tensors) > 20
    assert not any(tensor.is_inference() for tensor in tensors)


@pytest.mark.parametrize("kind", ["resnet_simple", "sis_autoencoder2", "unrolled_residual", "lens_residual"])
def test_a_training_step_follows_a_prediction_in_one_process(kind):
    from darklens.training.recipe import get

    for function in (optics.gaussian_psf, optics.convolution_matrix, render.axes, evidence.templates_of):
        function.cache_clear()
    fitter._cached_fitter.cache_clear()
    recipe = get(kind)
    size, scale = (150, 0.05) if kind == "unrolled_residual" else (64, 0.1)
    network = build(recipe.model, n_pixels=size, pixel_scale=scale, n_classes=3)
    batch = torch.rand(2, 1, size, size)
    if kind == "lens_residual":
        shipped = Bundle.load("lens_residual")
        images, _ = simulate_batch(populations.get("common-test-i"), 1, [0])
        shipped.classify(np.asarray(images))
        batch = shipped.inputs_of(np.repeat(np.asarray(images), 2, 0)).clone()
    with torch.inference_mode():
        network.eval()(batch)
    network.train()
    torch.nn.functional.cross_entropy(network(batch), torch.tensor([0, 1])).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
