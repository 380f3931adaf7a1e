"""Self-test of an installation: versions, device, and checks of the physics within seconds."""

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

import darklens
from darklens import plugins, populations, provenance, rng
from darklens.bundle import Bundle
from darklens.compilation import compiler
from darklens.locate import DEFAULT_MODEL
from darklens.physics import optics, splat
from darklens.physics.grid import Grid
from darklens.physics.profiles import PROFILES
from darklens.populations.population import PoissonNoise, Population
from darklens.simulate.batch import simulate_batch
from darklens.simulate.render import render
from darklens.simulate.truth import Truth, draw

_PACKAGES = ("torch", "numpy", "scipy", "astropy", "pytorch-lightning")
_EXTRAS = {
    "serve": ("fastapi", "uvicorn", "python_multipart"),
    "hub": ("huggingface_hub",),
    "hdf5": ("h5py",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "explain": ("captum",),
    "cluster": ("distributed", "dask_jobqueue"),
    "tune": ("optuna",),
}
_PARAMETERS = {
    "theta_E": 1.2,
    "e1": 0.1,
    "e2": -0.05,
    "gamma1": 0.05,
    "gamma2": -0.1,
    "mass": 0.05,
    "length": 1.5,
    "angle": 0.7,
    "slope": 2.1,
    "alpha_Rs": 0.3,
    "R_s": 0.5,
    "r_t": 2.0,
}
# Sum, maximum and pixel (60, 90) of the noise-free images 0, 1 and 2 of seed 7 of common-test-i, version 2.
_REFERENCE = [
    [727506.7631733038, 734.5972849218306, 89.96463939977662],
    [988613.7597560894, 820.0951086996156, 509.7096429370438],
    [925349.6182074447, 769.7014168275646, 98.65839871082578],
]
_UNIFORMS = [
    *(0.7389720305999402, 0.2836291312067484, 0.5059412467144154),
    *(0.3567915850382023, 0.38721568145079066, 0.7906438469305647),
]


@dataclass(frozen=True)
class Check:
    """Result of one check; `detail` has the largest deviation and its tolerance, or the error."""

    name: str
    passed: bool
    detail: str
    seconds: float


def versions() -> dict[str, str]:
    """Return what results depend on: versions, hardware, memory, compiler, extras and plug-ins."""
    info = {"darklens": f"{darklens.__version__} ({provenance.commit()})", "python": platform.python_version()}
    info |= {name: version(name) for name in _PACKAGES}
    device = f"cuda, {torch.version.cuda}" if torch.cuda.is_available() else "cpu"
    info |= {"device": f"{device}; {provenance.hardware()}", "threads": str(torch.get_num_threads())}
    info["memory"] = ", ".join(_memory()) or "unknown"
    info["compiler"] = compiler() or "none: --engine compiled needs one, such as g++"
    missing = missing_extras()
    present = [name for name in _EXTRAS if name not in missing]
    info["extras"] = ", ".join(present) or "none"
    if missing:
        info["extras"] += f"; without {', '.join(missing)} (pip install 'darklens[{missing[0]}]')"
    loaded = plugins.load()
    return info | ({"plug-ins": ", ".join(f"{name} ({origin})" for name, origin in loaded.items())} if loaded else {})


def missing_extras() -> list[str]:
    """Return the extras of which a package is not installed, without importing any."""
    return [name for name, modules in _EXTRAS.items() if any(find_spec(module) is None for module in modules)]


def _memory() -> list[str]:
    """Return the memory of the machine and of the GPU, where the system reports it."""
    sizes = []
    with suppress(AttributeError, OSError, ValueError):  # Windows
        sizes.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB")
    if torch.cuda.is_available():
        sizes.append(f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.1f} GiB on the GPU")
    return sizes


def run() -> list[Check]:
    """Run all checks, in about five seconds; a check that raises an error has failed."""
    return [_run_check(name, check) for name, check in _CHECKS.items()]


def _run_check(name: str, check: Callable[[], tuple[float, float]]) -> Check:
    start = time.perf_counter()
    try:
        deviation, tolerance = check()
        passed, detail = deviation <= tolerance, f"deviation {deviation:.1e}, tolerance {tolerance:.0e}"
    except Exception as error:  # the self-test must report each check, whatever the error
        passed, detail = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Check(name, passed, detail, time.perf_counter() - start)


def _gradients() -> tuple[float, float]:
    x, y = (c.requires_grad_() for c in _positions())
    deviation = 0.0
    for name in PROFILES:
        profile, values = _profile(name)
        gradient = torch.autograd.grad(profile.potential(x, y, **values).sum(), (x, y))
        alpha = profile.deflection(x, y, **values)
        deviation = max(deviation, *(float((a - g).detach().abs().max()) for a, g in zip(alpha, gradient, strict=True)))
    return deviation, 1e-8


def _divergences() -> tuple[float, float]:
    x, y = (c.requires_grad_() for c in _positions())
    deviation = 0.0
    for name in PROFILES:
        profile, values = _profile(name)
        alpha_x, alpha_y = profile.deflection(x, y, **values)
        (along_x,) = torch.autograd.grad(alpha_x.sum(), x, retain_graph=True)
        (along_y,) = torch.autograd.grad(alpha_y.sum(), y)
        deviation = max(
            deviation, float(((along_x + along_y) / 2 - profile.convergence(x, y, **values)).detach().abs().max())
        )
    return deviation, 1e-7


def _light_conservation() -> tuple[float, float]:
    grid = Grid(n_pixels=40, pixel_scale=0.1)
    x, y = (c.expand(1, 40, 40) for c in grid.coordinates(dtype=torch.float64))
    image = torch.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) / 0.1)[:, None]
    moved, _ = splat.bilinear(image, 0.7 * x + 0.1 * y, 0.8 * y, grid)
    blurred = optics.convolve_separable(image[:, 0], optics.gaussian_psf(sigma=1.74))
    total = image.sum()
    return max(float((v.sum() / total - 1).abs()) for v in (moved, blurred)), 1e-6


def _reference_images() -> tuple[float, float]:
    images = render(_population(), _truth(), dtype=torch.float64)
    values = torch.stack([images.sum((1, 2)), images.amax((1, 2)), images[:, 60, 90]], dim=1)
    reference = torch.tensor(_REFERENCE, dtype=torch.float64)
    return float((values / reference - 1).abs().max()), 1e-6


def _single_precision() -> tuple[float, float]:
    double = render(_population(), _truth(), dtype=torch.float64)
    single = render(_population(), _truth(), dtype=torch.float32).double()
    return float((single - double).abs().max() / double.amax()), 1e-5


def _poisson_noise() -> tuple[float, float]:
    """Compare the mean of (counts - rate)^2 / rate with 1, in standard errors."""
    population = _population().model_copy(update={"stored": "counts"})
    assert isinstance(population.noise, PoissonNoise)
    counts = torch.from_numpy(simulate_batch(population, 7, range(3))[0][:, 0]).double()
    rate = render(population, _truth(), dtype=torch.float64) + population.noise.sky
    excess = (counts - rate) ** 2 / rate - 1
    return float(excess.mean().abs() * (excess.numel() / 2) ** 0.5), 5.0


def _random_numbers() -> tuple[float, float]:
    values = rng.uniforms(7, "self-test", rows=[0, 2**40], n=3)
    return float(np.abs(values.ravel() - _UNIFORMS).max()), 0.0


def _shipped_model() -> tuple[float, float]:
    """Compare the probability of the true class of three clear images with 1."""
    images, truth = simulate_batch(_population(), 7, range(3))
    probabilities = Bundle.load(DEFAULT_MODEL).probabilities(images)
    return float(1 - probabilities[np.arange(3), truth["label"]].min()), 0.05


_CHECKS: dict[str, Callable[[], tuple[float, float]]] = {
    "alpha = grad psi, all profiles": _gradients,
    "kappa = div alpha / 2, all profiles": _divergences,
    "delensing and PSF conserve light": _light_conservation,
    "images equal the reference": _reference_images,
    "single precision agrees": _single_precision,
    "noise is Poisson": _poisson_noise,
    "random numbers equal the reference": _random_numbers,
    "the shipped model classifies three images": _shipped_model,
}


def _profile(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    profile = PROFILES[name]
    return profile, {
        # Parameters of plug-in profiles take values inside their range.
        p.symbol: torch.tensor(_PARAMETERS.get(p.symbol, 0.7 * p.low + 0.3 * p.high), dtype=torch.float64)
        for p in profile.parameters
    }


def _positions() -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions away from the origin and the line mass, where the convergence is singular."""
    phi = torch.linspace(0.1, 6.2, 40, dtype=torch.float64)
    return 1.7 * torch.cos(phi), 1.1 * torch.sin(phi)


def _population() -> Population:
    return populations.get("common-test-i")


def _truth() -> Truth:
    return draw(_population(), 7, range(3))
