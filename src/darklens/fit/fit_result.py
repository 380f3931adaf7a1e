"""The result of a fit of a scene, with its warnings, figure and exports."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from darklens.files import write_bytes
from darklens.fit import scene_export, scene_figure
from darklens.fit.scene_solver import Solver, State
from darklens.fit.scene_starts import main_lens
from darklens.fit.source_plane import focus
from darklens.scene.observation import Observation
from darklens.scene.scene import Scene

POOR, _POOR_SIGMA = 1.15, 5.0  # chi2 per pixel, and its excess in standard deviations, of a poor fit
_DIFFERENT = 0.03  # difference in ln theta_E of fits that are not the same
_CLOSE = 25.0  # excess of the deviance of another solution; or, relative to the deviance, of good and of poor fits:
_CLOSE_RELATIVE, _CLOSE_IF_POOR = 0.02, 0.1
LARGEST_FOCUS = 0.7  # size of the source relative to its images, for a source grid; lenses have 0.1 to 0.5
_FAINTEST = 100.0  # reduction of chi2 by the model below which the image may be noise alone
_TOO_GOOD = 0.1  # chi2 per pixel below which the noise map is wrong, or the image has no noise


@dataclass(frozen=True)
class OtherSolution:
    """A solution of a fit at another Einstein radius that describes the image almost as well.

    Attributes:
        theta_E: Einstein radius of the main lens, arcsec.
        excess: By how much `measure` exceeds that of the best solution.
        parameters: Its parameters by name, from a fit of the image in larger pixels or from a fit with a source grid.
        measure: What the solutions were compared by.
    """

    theta_E: float
    excess: float
    parameters: Mapping[str, float] = field(repr=False)
    measure: Literal["chi2", "-2 ln(evidence)"] = "chi2"

    def __str__(self) -> str:
        """Return the warning."""
        return f"theta_E = {self.theta_E:.3g} fits almost as well: its {self.measure} is {self.excess:.0f} higher"


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fit of one scene to one observation.

    Attributes:
        scene: The fitted scene.
        observation: The observation to which it was fitted.
        parameters: Best-fitting values by name.
        errors: Standard deviations by name, from the curvature of the deviance; NaN for parameters that the image does
            not determine.
        amplitudes: Linear amplitudes by name, in the unit of the image.
        model: Best-fitting noise-free image (rows, columns).
        chi2: Sum of squared residuals in units of the noise, over the fitted pixels.
        n_pixels: Number of fitted pixels.
        converged: Whether the predicted reduction of the deviance by an undamped step is below 0.1.
        at_bounds: Names of the parameters at a bound.
        steps: Number of model evaluations at full resolution.
        seconds: Processor time.
        covariance: Covariance matrix of the parameters, in the order of `scene.names`; NaN as for `errors`.
        effective_amplitudes: Number of amplitudes that the image determines, rather than their prior.
        alternatives: Solutions at other Einstein radii that describe the image almost as well (`almost_as_good`).
    """

    scene: Scene = field(repr=False)
    observation: Observation = field(repr=False)
    parameters: dict[str, float]
    errors: dict[str, float]
    amplitudes: dict[str, float]
    model: Float[np.ndarray, "rows columns"] = field(repr=False)
    chi2: float
    n_pixels: int
    converged: bool
    at_bounds: tuple[str, ...]
    steps: int
    seconds: float
    covariance: Float[np.ndarray, "p p"] = field(repr=False)
    effective_amplitudes: float
    alternatives: tuple[OtherSolution, ...] = ()

    def __str__(self) -> str:
        """Return one line for each parameter, then chi2 per pixel and the warnings."""
        lines = [f"{name} = {value:.6g} +- {self.errors[name]:.2g}" for name, value in self.parameters.items()]
        lines += [f"{name} = {value:.6g}" for name, value in self.listed_amplitudes.items()]
        lines.append(f"chi2 per pixel = {self.chi2_per_pixel:.4g} of {self.n_pixels} pixels")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    @property
    def listed_amplitudes(self) -> dict[str, float]:
        """The amplitudes without those of a source grid, which are many."""
        names = [name for name, p in self.scene.profiles.items() if p is self.scene.source_grid]
        return {name: v for name, v in self.amplitudes.items() if name.rpartition(".")[0] not in names}

    @property
    def chi2_per_pixel(self) -> float:
        """Reduced chi2: chi2 per degree of freedom, close to 1 if the model and the noise map are correct."""
        return self.chi2 / self._freedom

    @property
    def chi2_excess(self) -> float:
        """(chi2 - n) / sqrt(2 n) for n degrees of freedom: the excess of chi2 in standard deviations."""
        return (self.chi2 - self._freedom) / math.sqrt(2 * self._freedom)

    @property
    def _freedom(self) -> float:
        return max(self.n_pixels - len(self.parameters) - self.effective_amplitudes, 1.0)

    @property
    def deviance(self) -> float:
        """chi2 plus the penalty of the priors."""
        internal = self.scene.internal(self.scene.pack(self.parameters))[0]
        mean, inverse_variance = self.scene.prior(internal)
        penalty = float((inverse_variance * (internal - mean) ** 2).sum())
        if (prior := self.scene.amplitude_prior) is not None:
            amplitudes = torch.tensor([self.amplitudes[name] for name in self.scene.amplitude_names]).double()
            penalty += float(amplitudes @ (prior @ amplitudes))
        return self.chi2 + penalty

    @property
    def is_poor(self) -> bool:
        """Whether the model does not describe the image: chi2 is far above its expectation."""
        return self.chi2_per_pixel > POOR and self.chi2_excess > _POOR_SIGMA

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the fit, one phrase each."""
        lens = f"{main_lens(self.scene)}."
        warnings = [] if self.converged else ["not converged"]
        if self.is_poor:
            warnings.append(f"chi2 per pixel {self.chi2_per_pixel:.2f}: the model does not describe the image")
        if self.chi2_per_pixel < _TOO_GOOD:
            warnings.append(f"chi2 per pixel {self.chi2_per_pixel:.2g}: the noise map exceeds the noise of the image")
        if float((self.observation.weights * self.observation.image**2).sum()) - self.chi2 < _FAINTEST:
            warnings.append("the image has no significant light")
        undetermined = [name for name, error in self.errors.items() if math.isnan(error)]
        for words, names in (("at a bound", self.at_bounds), ("not determined by the image", undetermined)):
            if names := [name for name in names if name.startswith((lens, "shear."))]:
                warnings.append(f"{words}: {', '.join(names)}")
        if focus(self) > LARGEST_FOCUS:
            warnings.append("the source is nearly as large as its images: the grid describes them without a lens")
        return (*warnings, *map(str, self.alternatives))

    @cached_property
    def residual(self) -> Float[np.ndarray, "rows columns"]:
        """(image - model) / noise; zero for excluded pixels."""
        return np.asarray((self.observation.image - self.model) * np.sqrt(self.observation.weights))

    @property
    def theta_E(self) -> float:
        """Einstein radius of the main lens, arcsec: the radius of the circle with the area of its critical ellipse."""
        return self.scene.values_of(main_lens(self.scene), self.parameters)["theta_E"]

    def with_alternatives(self, solutions: Iterable[OtherSolution]) -> "FitResult":
        """Return the fit with those alternatives that are almost as good, the first for each Einstein radius."""
        chosen: list[OtherSolution] = []
        for solution in solutions:
            radii = [self.theta_E, *(known.theta_E for known in chosen)]
            is_new = not any(are_same(solution.theta_E, theta_E) for theta_E in radii)
            if is_new and almost_as_good(solution.excess, self.deviance, self.n_pixels):
                chosen.append(solution)
        return replace(self, alternatives=tuple(chosen))

    def scaled(self, factor: float) -> "FitResult":
        """Return the fit of the observation multiplied by a factor."""
        if factor == 1:
            return self
        return replace(
            self,
            scene=self.scene.scaled(factor),
            observation=self.observation.scaled(factor),
            amplitudes={name: value * factor for name, value in self.amplitudes.items()},
            model=self.model * factor,
        )

    def plot(self, path: Path | str) -> None:
        """Write a PNG of data, model, residual in units of the noise, and source plane."""
        write_bytes(Path(path), scene_figure.draw(self))

    def to_lenstronomy(self) -> dict[str, Any]:
        """Return model lists and keyword arguments of lenstronomy; see `scene_export.to_lenstronomy`."""
        return scene_export.to_lenstronomy(self)

    def to_coolest(
        self, path: Path | str | None = None, *, z_lens: float | None = None, z_source: float | None = None
    ) -> dict[str, Any]:
        """Return the content of a COOLEST template and, with a path, write it as JSON; see `scene_export`."""
        if path is None:
            return scene_export.to_coolest(self, z_lens=z_lens, z_source=z_source)
        return scene_export.write_coolest(self, Path(path), z_lens=z_lens, z_source=z_source)


def almost_as_good(excess: float, lowest: float, n_pixels: int) -> bool:
    """Return whether a solution is almost as good as the best, from its excess over the lowest deviance.

    Where no solution describes the image, a larger excess is allowed, because the model then determines it.
    """
    relative = _CLOSE_IF_POOR if lowest > POOR * n_pixels else _CLOSE_RELATIVE
    return excess < max(_CLOSE, relative * lowest)


def are_same(theta_E: float, other: float) -> bool:
    """Return whether two Einstein radii count as one solution."""
    return abs(math.log(theta_E / other)) <= _DIFFERENT


def result_of(solver: Solver, state: State, observation: Observation, started: float) -> FitResult:
    """Return the first fit of a state at full resolution; `started` is the processor time at its start."""
    scene = solver.scene
    internal = state.internal[0]
    values = scene.external(state.internal)[0].tolist()
    scales = torch.tensor([v if p.log else 1.0 for v, p in zip(values, scene.free, strict=True)], dtype=torch.float64)
    covariance = solver.covariance(state)[0].double().cpu() * scales * scales[:, None]
    undetermined = ~(covariance.diagonal() > 0)
    covariance[undetermined], covariance[:, undetermined] = torch.nan, torch.nan
    errors = covariance.diagonal().sqrt().tolist()
    low, high = scene.bounds(internal)
    bound = ((internal <= low) | (internal >= high)).tolist()
    return FitResult(
        scene=scene,
        observation=observation,
        parameters=dict(zip(scene.names, values, strict=True)),
        errors=dict(zip(scene.names, errors, strict=True)),
        amplitudes=dict(zip(scene.amplitude_names, state.amplitudes[0].tolist(), strict=True)),
        model=state.model[0].double().cpu().numpy(),
        chi2=float(state.chi2[0]),
        n_pixels=int(observation.used.sum()),
        converged=bool(state.converged[0]),
        at_bounds=tuple(name for name, at in zip(scene.names, bound, strict=True) if at),
        steps=int(state.steps[0]),
        seconds=time.process_time() - started,
        covariance=covariance.numpy(),
        effective_amplitudes=solver.effective_amplitudes(state),
    )
