"""Everything that computes on tensors runs on a GPU: on a pretend device, with the values of the CPU."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretend_device import CUDA, PretendTensor, pretend_device
from pytorch_lightning.plugins.precision import Precision

from darklens import Bundle, populations
from darklens.data.noise_estimate import noise_variance
from darklens.data.preprocess import Affine, BatchRandom, Dihedral, Preprocess
from darklens.data.ring_statistics import ring_statistics
from darklens.evaluation.metrics import reconstruction_metrics
from darklens.fit import scene_fit, scene_starts
from darklens.fit.evidence import evidence_maps
from darklens.fit.features import MAP_NAMES, SUMMARY_NAMES, FitFeatures
from darklens.fit.hypotheses import fit_hypotheses
from darklens.fit.macro import fit_macro
from darklens.fit.scene_solver import Data, Solver
from darklens.fit.source_reconstruction import reconstruct_source
from darklens.models.lens_layer import LensLayer
from darklens.models.zoo import SYSTEMS, build, kinds
from darklens.physics.grid import Grid
from darklens.scene import (
    EPL,
    NFW,
    PSF,
    SIE,
    SIS,
    TNFW,
    Detector,
    LineMass,
    MultiGaussian,
    Multipole,
    Observation,
    PointMass,
    PseudoJaffe,
    Scene,
    Sersic,
    Shapelets,
    Shear,
)
from darklens.simulate.batch import simulate_batch
from darklens.simulate.render import render
from darklens.simulate.truth import draw
from darklens.training.ema import WeightEMA
from darklens.training.learner import Learner
from darklens.training.recipe import get

SCALE = 0.1


def tensors_of(value):
    """Return all tensors and arrays in a result."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for element in value for tensor in tensors_of(element)] if isinstance(value, tuple | list) else []


def compare(compute, *, at_most_uploads=None):
    """Assert that `compute(device)` gives the same tensors on both devices, and limit the uploads of a second call."""
    expected = tensors_of(compute("cpu"))
    with pretend_device() as device:
        result = tensors_of(compute("cuda"))
        if at_most_uploads is not None:
            before = device.uploads
            compute("cuda")
            assert device.uploads - before <= at_most_uploads
    assert len(result) == len(expected) > 0
    for a, b in zip(expected, result, strict=True):
        if isinstance(a, torch.Tensor):
            assert isinstance(b, PretendTensor), "a result is not on the device"
            a, b = a.detach().numpy(), b.detach().cpu().numpy()
        np.testing.assert_array_equal(a, b)


def lens_images(n=2, *changes):
    population = populations.get("common-test-i", ["field.n_pixels=64", *changes])
    return population, torch.from_numpy(simulate_batch(population, 1, range(n))[0][:, 0])


@pytest.mark.parametrize("name", ["common-test-i", "realistic-hst", "deeplense-model-i"])
def test_simulated_lenses(name):
    population = populations.get(name, ["field.n_pixels=32"])
    compare(lambda device: render(population, draw(population, 1, range(4)), device=device))
    with pretend_device():
        images, _ = simulate_batch(population, 1, range(3), device="cuda")
        assert np.isfinite(images).all() and images.std((1, 2, 3)).min() > 0


@pytest.mark.parametrize("changes", [[], ["psf.known=false"]])
def test_macro_fit(changes):
    population, images = lens_images(2, *changes)
    compare(lambda device: fit_macro(images.to(device), population, centred=not changes), at_most_uploads=2)


def test_macro_fit_with_a_noise_map_of_exposures():
    population, images = lens_images()
    exposure = 1 + torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    compare(lambda device: fit_macro(images.to(device), population, exposure=exposure.to(device)))


@pytest.mark.sweep
def test_hypotheses_and_evidence_maps():
    population, images = lens_images()

    def compute(device):
        on_device = images.to(device)
        return (
            fit_hypotheses(on_device, population, centred=False),
            evidence_maps(on_device, fit_macro(on_device, population), population),
        )

    compare(compute, at_most_uploads=3)


PROFILES = {
    "EPL, shear, multipole": lambda: [EPL(), Shear(), Multipole(m=4)],
    "SIE, NFW, TNFW": lambda: [SIE(), NFW(name="halo"), TNFW(name="subhalo")],
    "SIS, point, line, PJ": lambda: [SIS(), PointMass(name="p"), LineMass(name="l"), PseudoJaffe(name="j")],
}


@pytest.mark.parametrize("masses", PROFILES)
def test_scene_renderer_slopes_and_a_fit_step(masses):
    scene = Scene(PROFILES[masses](), [Sersic(), Shapelets(2)], [Sersic(), MultiGaussian()])
    detector = Detector((16, 18), SCALE, PSF.gaussian(fwhm=0.15, pixel_scale=SCALE, oversampling=2), supersample=2)

    def compute(device):
        parameters = scene.start().to(device).repeat(2, 1)
        amplitudes = torch.ones(2, len(scene.amplitude_names), device=device)
        image = scene.render(parameters, amplitudes, detector)
        internal = scene.internal(parameters)
        data = Data(image + 0.01, torch.ones_like(image))
        state = Solver(scene, detector).minimise(internal + 0.01, data, steps=1)
        return image, scene.slopes(internal, amplitudes, detector), state

    compare(compute, at_most_uploads=1 if "SIS" in masses else None)


def test_scene_fit_from_random_starts(monkeypatch):
    monkeypatch.setattr(scene_starts, "_DRAWS", 240)
    monkeypatch.setattr(scene_starts, "_BINS", 4)
    monkeypatch.setattr(scene_starts, "_CANDIDATES", 3)
    minimise = Solver.minimise
    monkeypatch.setattr(Solver, "minimise", lambda *fit, steps=60: minimise(*fit, steps=min(steps, 3)))
    scene = Scene([SIE(), Shear()], [Sersic()], [Sersic()])
    psf = PSF.gaussian(fwhm=0.15, pixel_scale=SCALE)
    values = dict(zip(scene.names, scene.start()[0].tolist(), strict=True))
    image = scene.image(values, dict.fromkeys(scene.amplitude_names, 5.0), Detector((26, 26), SCALE, psf))
    noisy = image + np.random.default_rng(0).normal(0, 0.1, image.shape)
    observation = Observation.of(noisy, noise_map=0.1, pixel_scale=SCALE, psf=psf)

    def compute(device):
        result = scene_fit.fit(observation, scene, device=device)
        return result.model, result.covariance, np.array(list(result.parameters.values()))

    compare(compute)
    smooth = scene_fit.fit(observation, scene)

    def reconstruct(device):
        result = reconstruct_source(smooth, 6, device=device)
        return result.model, result.covariance, np.array(list(result.amplitudes.values()))

    compare(reconstruct)


@pytest.mark.parametrize("kind", kinds())
def test_forward_and_a_training_step_of_each_network(kind):
    """After a prediction in inference mode, whose caches the training step uses."""
    size, scale = (150, 0.05) if kind == "unrolled_residual" else (64, SCALE)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(2, 1, size, size, generator=generator)
    if kind == "lens_residual":
        maps = torch.rand(2, len(MAP_NAMES), 24, 24, generator=generator)
        inputs = FitFeatures(maps, torch.rand(2, len(SUMMARY_NAMES), generator=generator))

    def compute(device):
        torch.manual_seed(0)
        network = build(get(kind).model, n_pixels=size, pixel_scale=scale, n_classes=3).to(device)
        batch, labels = inputs.to(torch.device(device)), torch.tensor([0, 1], device=device)
        with torch.inference_mode():
            prediction = network.eval()(batch).clone()
        network.train()
        optimiser = torch.optim.AdamW(network.parameters(), fused=True)
        if hasattr(network, "losses"):
            loss = network.losses(batch, labels).mean()
        elif SYSTEMS[kind].task == "reconstruct":
            loss = (network(batch) - batch).square().mean()
        else:
            loss = torch.nn.functional.cross_entropy(network(batch), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        return prediction, network.state_dict()

    compare(compute)


@pytest.mark.parametrize("reduction", ["sum", "normalised", "overwrite", "gather"])
def test_lens_layer(reduction):
    images, k = torch.rand(2, 1, 12, 12), torch.rand(2, 12, 12)
    centre = torch.zeros(2), torch.ones(2)

    def compute(device):
        layer = LensLayer(Grid(n_pixels=12, pixel_scale=SCALE), reduction=reduction, grad_k="exact").to(device)
        light = images.to(device).clone().requires_grad_()
        source = layer(light, k.to(device), (centre[0].to(device), centre[1].to(device)))
        source.sum().backward()
        return source, light.grad

    compare(compute, at_most_uploads=6)  # the inputs


@pytest.mark.parametrize("augment", [Dihedral(), Affine()])
def test_preprocessing_and_augmentation(augment):
    images = torch.rand(4, 1, 32, 32)
    preprocess = Preprocess(crop=24, bin=2)

    def compute(device):
        random = BatchRandom(torch.Generator().manual_seed(2))
        on_device = images.to(device)
        return preprocess(on_device), preprocess.augmented(on_device, augment, random)

    compare(compute, at_most_uploads=3)


def test_metrics_and_statistics_of_images():
    images = torch.rand(3, 1, 24, 24)
    compare(lambda device: (ring_statistics(images.to(device)), noise_variance(images.to(device))))
    compare(lambda device: reconstruction_metrics(images.to(device), images.to(device) * 0.9))


@pytest.mark.sweep
def test_bundle_classifies_with_maps_and_covariance():
    images, _ = simulate_batch(populations.get("common-test-i"), 1, range(2))
    exposure, mask = np.ones_like(images), np.zeros(images.shape, dtype=bool)
    mask[:, :, :5] = True

    def classify(device):
        bundle = Bundle.load("lens_residual", device=device)
        assert {p.device for p in bundle.network.parameters()} == {CUDA if device == "cuda" else torch.device("cpu")}
        result = bundle.classify(images, exposure=exposure, mask=mask, with_maps=True)
        smooth = bundle.smooth_fit(images, exposure=exposure, mask=mask)
        return result.probabilities, result.maps, result.ood_features, result.findings, smooth.macro.covariance

    compare(classify)


def test_the_mean_of_the_weights_is_kept_on_the_device():
    recipe = get("resnet_simple")

    def compute(device):
        torch.manual_seed(0)
        network = build(recipe.model, n_pixels=64, pixel_scale=SCALE, n_classes=3)
        learner = Learner(network, stage=recipe.stages[0], stage_index=0, data=recipe.data, seed=0, batch_size=2)
        trainer, ema = SimpleNamespace(global_step=0, precision_plugin=Precision()), WeightEMA(0.9)
        ema.setup(trainer, learner, "fit")
        learner.to(device)
        ema.on_fit_start(trainer, learner)
        images, labels = torch.rand(2, 1, 64, 64, device=device), torch.tensor([0, 1], device=device)
        optimiser = torch.optim.AdamW(network.parameters(), fused=True)
        for step in (1, 2):
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimiser.step()
            trainer.global_step = step
            ema.on_train_batch_end(trainer, learner, None, (images, labels), step)
            assert {p.device for p in ema._average_model.module.parameters()} == {images.device}
        ema.on_validation_epoch_start(trainer, learner)
        return network.state_dict()

    compare(compute)
