"""Thresholds for a rate of false alarms, from searches in simulated images of the fitted smooth lens."""

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import darklens
from darklens.errors import ConfigError, InputError
from darklens.files import read_json, write_json
from darklens.fit.fit_result import FitResult, result_of
from darklens.fit.perturber_profiles import PerturberKind, Redshifts
from darklens.fit.perturbers import find_perturbers
from darklens.fit.scene_solver import Solver, data_of
from darklens.rng import generator
from darklens.scene.observation import Observation

_FIT_STEPS = 40
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class FalseAlarmThreshold:
    """A threshold of the score (`SearchResult.score`) for a rate of false alarms.

    Attributes:
        value: The threshold.
        low: Lower end of its 68 % interval, from bootstraps of the scores.
        high: Upper end.
        rate: Rate of false alarms.
        scores: Scores of the simulated smooth lenses, increasing.
    """

    value: float
    low: float
    high: float
    rate: float
    scores: tuple[float, ...]


def false_alarm_threshold(
    result: FitResult,
    *,
    rate: float = 0.1,
    n: int = 20,
    perturber: PerturberKind = "tnfw",
    redshifts: Redshifts | None = None,
    seed: int = 0,
    compiled: bool = False,
) -> FalseAlarmThreshold:
    """Return the threshold above which a share `rate` of smooth lenses like the fitted one have a perturber.

    Images of the fitted scene with the noise of the observation are fitted, from the true parameters, and searched as
    in `find_perturbers`. The scores are cached in ~/.cache/darklens/false-alarms. The model of the simulations is the
    model of the fit, so the rate does not include errors of the model, such as multipoles or structure in the source.

    Args:
        result: Fit of the smooth scene.
        rate: Rate of false alarms.
        n: Number of simulations. With 20 and a rate of 0.1 the threshold is uncertain by several units of delta chi2.
        perturber: As for `find_perturbers`.
        redshifts: Redshifts, and the concentration of haloes.
        seed: Seed of the noise.
        compiled: Whether to compile the scenes (`darklens.fit`).

    Raises:
        ConfigError: If the rate is not between 1 / n and 1.
    """
    if not 1 / max(n, 1) <= rate < 1:
        raise ConfigError(
            f"A rate of false alarms of {rate:g} needs at least {int(np.ceil(1 / max(rate, 1e-9)))} simulations."
        )
    redshifts = redshifts or Redshifts()
    path = _cache_folder() / f"{_digest(result, perturber, redshifts, n, seed)}.json"
    scores = _cached(path, n)
    if scores is None:
        scores = [_score(result, perturber, redshifts, generator(seed, "false alarms", i), compiled) for i in range(n)]
        with suppress(InputError, OSError, ValueError):  # a folder that cannot be written, or a score of NaN
            if path.is_symlink():  # `write_json` would replace the file that it leads to
                path.unlink()
            write_json(path, {"schema": 1, "scores": scores})
    resampled = np.random.default_rng(0).choice(scores, (_BOOTSTRAPS, n))
    low, high = np.quantile(np.quantile(resampled, 1 - rate, axis=1), (0.16, 0.84))
    return FalseAlarmThreshold(
        float(np.quantile(scores, 1 - rate)), float(low), float(high), rate, tuple(sorted(scores))
    )


def _cached(path: Path, n: int) -> list[float] | None:
    """Return n scores from the cache; None if there are none, or the file is damaged or a link."""
    if path.is_symlink():
        return None
    try:
        scores = np.array(read_json(path)["scores"], dtype=np.float64)
    except (InputError, LookupError, TypeError, ValueError, OverflowError):
        return None
    return scores.tolist() if scores.shape == (n,) and bool(np.isfinite(scores).all()) else None


def _score(
    result: FitResult, perturber: PerturberKind, redshifts: Redshifts, draws: np.random.Generator, compiled: bool
) -> float:
    """Return the score of one simulated image."""
    started = time.process_time()
    result = result.scaled(1 / result.observation.unit)
    observation: Observation = result.observation
    noise = np.where(observation.used, observation.noise_map, 0.0) * draws.normal(size=observation.image.shape)
    simulated = replace(observation, image=np.where(observation.used, result.model + noise, 0.0))
    scene = result.scene
    solver = Solver(scene, observation.detector(), compiled=compiled)
    start = scene.internal(scene.pack(result.parameters)).float()
    state = solver.minimise(start, data_of(simulated), steps=_FIT_STEPS)
    smooth = result_of(solver, state, simulated, started)
    search = find_perturbers(
        simulated, scene, perturber=perturber, result=smooth, redshifts=redshifts, compiled=compiled
    )
    return 0.0 if search.message else search.score


def _digest(result: FitResult, perturber: str, redshifts: Redshifts, n: int, seed: int) -> str:
    """Return a digest of scene, noise and options."""
    observation = result.observation.scaled(1 / result.observation.unit)
    values = [f"{v:.5g}" for v in (*result.parameters.values(), *result.amplitudes.values(), observation.pixel_scale)]
    text = repr((darklens.__version__, result.scene.to_yaml(), values, perturber, redshifts, n, seed))
    digest = hashlib.sha256(text.encode())
    for array in (observation.weights, *([observation.psf.kernel.numpy()] if observation.psf else [])):
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()[:24]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "darklens" / "false-alarms"
