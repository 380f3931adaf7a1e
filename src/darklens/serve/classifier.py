"""A bundle and prepared images to what the server says of them: numbers, not the words of a table."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from darklens.bundle import Bundle
from darklens.evaluation.columns import prediction_columns
from darklens.fit.evidence import Evidence, evidence_maps
from darklens.fit.features import FitFeatures, MapName
from darklens.fit.hypotheses import N_POINTS
from darklens.fit.macro import MacroFit, fit_macro
from darklens.fit.smooth import CENTRE
from darklens.fit.summary import fit_succeeded
from darklens.populations.population import Population
from darklens.populations.substructure_models import LineMass, NoSubstructure, PointMasses
from darklens.serve.batching import Job
from darklens.serve.responses import Fit, ImageResult, Map, OutOfDistribution, Quantity, Suggestion

if TYPE_CHECKING:
    from torch import Tensor

_ARCSEC = {"theta_E", "source_x", "source_y", *CENTRE}
_SMOOTH = ("theta_E", "gamma1", "gamma2", "source_x", "source_y", *CENTRE)
_SIGMA = "standard deviations"
_FAILED = "No fit describes the image, so the class is based on the image alone."
_FROM_FITS: dict[str, tuple[MapName, str]] = {  # name in the response: map of the fits, label
    "residual_line": ("line_residual", "Residual with a line"),
    "residual_points": ("point_residual", "Residual with point masses"),
    "evidence_point": ("evidence", "Evidence for a point mass"),
}
_OF_NETWORK = {  # name in `Bundle.maps`: name here, label, unit
    "k": ("k", "Predicted map k(x, y)", "arcsec"),
    "alpha_x": ("deflection_x", "Deflection along x", "arcsec"),
    "alpha_y": ("deflection_y", "Deflection along y", "arcsec"),
    "source": ("source", "Light in the source plane", "of the brightest pixel"),
}


class Classifier:
    """Judges images with one bundle, which classifies."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        settings = bundle.fit_settings
        self.population: Population | None = settings.population if settings else None
        self._centred = settings is not None and settings.centred

    def __call__(self, jobs: Sequence[Job]) -> list[ImageResult]:
        """Return a result for each job."""
        usual = [i for i, job in enumerate(jobs) if job.exposure == 1 or self.population is None]
        groups = [usual] if usual else []
        groups += [[i] for i in range(len(jobs)) if i not in usual]
        results = {
            i: result
            for rows in groups
            for i, result in zip(rows, self._classify_batch([jobs[i] for i in rows]), strict=True)
        }
        return [results[i] for i in range(len(jobs))]

    def _classify_batch(self, jobs: Sequence[Job]) -> list[ImageResult]:
        """Judge images of one exposure."""
        images = np.stack([job.pixels for job in jobs])[:, None]
        exposure = jobs[0].exposure
        inputs = self._inputs_of(images, exposure)
        logits, features = self.bundle.output(inputs)
        probabilities = self.bundle.calibrated(logits)
        told = prediction_columns(self.bundle, probabilities, features)
        fits = inputs if isinstance(inputs, FitFeatures) else None
        maps = self._maps(jobs, images, fits, exposure)
        results = []
        for i, job in enumerate(jobs):
            result = self._result(job, probabilities[i], {name: column[i] for name, column in told.items()})
            if fits is not None:
                result = result.model_copy(update=self._fits(fits, i, str(result.predicted), maps[i].parameters))
            results.append(result.model_copy(update={"maps": maps[i].maps}))
        return results

    def _inputs_of(self, images: Float[np.ndarray, "b 1 n n"], exposure: float) -> "Tensor | FitFeatures":
        settings = self.bundle.fit_settings
        if exposure == 1 or settings is None:
            return self.bundle.inputs_of(images)
        plane = torch.from_numpy(images[:, 0])
        return settings.extract_features(plane, exposure=torch.full_like(plane, exposure))

    def _result(self, job: Job, probabilities: Float[np.ndarray, " c"], told: Mapping[str, str]) -> ImageResult:
        contract = self.bundle.contract
        calibration = contract.calibration
        known = calibration is not None and bool(calibration.conformal)
        members = told["set"].split("|") if told["set"] else []
        ood = None
        if calibration is not None and calibration.ood is not None and told["ood_score"]:
            ood = OutOfDistribution(
                score=float(told["ood_score"]), threshold=calibration.ood.p99, unfamiliar=told["ood"] == "yes"
            )
        return ImageResult(
            name=job.name,
            status="ok",
            predicted=contract.classes[int(probabilities.argmax())],
            probabilities=dict(zip(contract.classes, map(float, probabilities), strict=True)),
            set=members,
            coverage=calibration.conformal[0].level if known and calibration is not None else None,
            dont_know=known and len(members) != 1,
            ood=ood,
            changes=list(job.changes),
        )

    def _fits(
        self, fits: FitFeatures, i: int, predicted: str, parameters: dict[str, Quantity] | None
    ) -> dict[str, object]:
        """Return the parts of a result that come from the fits of one image."""
        assert self.population is not None
        value = {name: float(column[i]) for name, column in fits.columns().items()}
        chi2 = {
            name: value["deviance"] - _gain(spec, value)
            for name, spec in self.population.classes.items()
            if name in self.bundle.contract.classes
        }
        good = bool(fit_succeeded(fits)[i])
        fit = Fit(
            converged=value["converged"] > 0.5,
            chi2_per_pixel=value["deviance"] / max(value["n_pixels_fitted"], 1.0),
            parameters=parameters or {name: _quantity(name, value[name], None) for name in _SMOOTH},
            message=None if good else _FAILED,
        )
        suggestion = _suggestion(self.population, predicted, value) if good else None
        return {"fit": fit, "hypotheses": chi2, "suggestion": suggestion}

    def _maps(
        self, jobs: Sequence[Job], images: Float[np.ndarray, "b 1 n n"], fits: FitFeatures | None, exposure: float
    ) -> "list[_Maps]":
        found = [_Maps() for _ in jobs]
        rows = [i for i, job in enumerate(jobs) if job.maps]
        if not rows:
            return found
        scale = self.bundle.contract.pixel_scale
        pictures = {i: {"image": _map(images[i, 0], "Image", "image units", scale)} for i in rows}
        if fits is not None:
            macro, evidence = self._fit(images[rows], exposure)
            for k, i in enumerate(rows):
                pictures[i] |= _fit_maps(macro, evidence, k, scale)
                for name, (source, label) in _FROM_FITS.items():
                    values = fits.map(source)[i].cpu().numpy()
                    pictures[i][name] = _map(values, label, _SIGMA, self.bundle.fit_pixel_scale)
                found[i] = _Maps(pictures[i], _errors(macro, k))
        else:
            made = self.bundle.maps(images[rows]) if self.bundle.has_maps else {}
            for k, i in enumerate(rows):
                for name, (here, label, unit) in _OF_NETWORK.items():
                    if name in made:
                        pictures[i][here] = _map(made[name][k], label, unit, self.bundle.map_pixel_scale)
                found[i] = _Maps(pictures[i])
        return found

    def _fit(self, images: Float[np.ndarray, "b 1 n n"], exposure: float) -> tuple[MacroFit, Evidence]:
        assert self.population is not None
        plane = torch.from_numpy(images[:, 0])
        depth = None if exposure == 1 else torch.full_like(plane, exposure)
        macro = fit_macro(plane, self.population, exposure=depth, centred=self._centred)
        return macro, evidence_maps(plane, macro, self.population, exposure=depth)


@dataclass(frozen=True)
class _Maps:
    maps: dict[str, Map] | None = None
    parameters: dict[str, Quantity] | None = None


def _gain(spec: object, value: Mapping[str, float]) -> float:
    if isinstance(spec, NoSubstructure):
        return 0.0
    return value["delta_chi2_line"] if isinstance(spec, LineMass) else value[f"delta_chi2_points_{N_POINTS}"]


def _errors(macro: MacroFit, i: int) -> dict[str, Quantity]:
    deviations = macro.covariance[i].diagonal().clamp_min(0).sqrt().tolist()
    numbers = zip(macro.names, macro.parameters[i].tolist(), deviations, strict=True)
    return {name: _quantity(name, value, error) for name, value, error in numbers}


def _quantity(name: str, value: float, error: float | None) -> Quantity:
    return Quantity(value=value, error=error, unit="arcsec" if name in _ARCSEC else "")


def _suggestion(population: Population, predicted: str, value: Mapping[str, float]) -> Suggestion | None:
    """Return the substructure of the predicted class that the fit found; None where that class has none."""
    spec = population.classes.get(predicted)
    if spec is None or isinstance(spec, NoSubstructure):
        return None
    units = {"x": "arcsec", "y": "arcsec", "mass": "M_sun", "theta_E_squared": "arcsec^2"}
    if isinstance(spec, LineMass):
        squared = value["line_mass"]
        return Suggestion(
            kind="line",
            x=value["line_x"],
            y=value["line_y"],
            mass=_solar(population, squared, value["theta_E"]),
            theta_E_squared=squared,
            length=value["line_length"],
            angle=float(np.degrees(value["line_angle"])) % 180,
            units=units | {"length": "arcsec", "angle": "deg"},
        )
    squared = value["point_1_mass"]
    return Suggestion(
        kind="point",
        x=value["point_1_x"],
        y=value["point_1_y"],
        mass=_solar(population, squared, value["theta_E"]),
        theta_E_squared=squared,
        units=units,
    )


def _solar(population: Population, squared: float, theta_E: float) -> float | None:
    """Return a mass in solar masses, if the population says what mass its lenses have."""
    specs = [spec for spec in population.classes.values() if isinstance(spec, PointMasses)]
    return squared / specs[0].theta_E_squared(1.0, theta_E) if specs else None


def _fit_maps(macro: MacroFit, evidence: Evidence, i: int, pixel_scale: float) -> dict[str, Map]:
    gain = evidence.delta_chi2_line[i]
    return {
        "smooth": _map(macro.model[i].numpy(), "Fitted smooth lens", "image units", pixel_scale),
        "residual": _map(macro.residual[i].numpy(), "Residual of the smooth lens", _SIGMA, pixel_scale),
        "evidence_line": _map(
            (gain.sign() * gain.abs().sqrt()).numpy(),
            "Evidence for a line",
            _SIGMA,
            evidence.line_scale,
        ),
    }


def _map(values: Float[np.ndarray, "h w"], label: str, unit: str, pixel_scale: float) -> Map:
    """Return a map whose centre is the optical axis."""
    finite = np.nan_to_num(np.asarray(values, dtype="<f4"))
    height, width = finite.shape
    half = width * pixel_scale / 2, height * pixel_scale / 2
    return Map(
        label=label,
        unit=unit,
        shape=[height, width],
        extent=[-half[0], half[0], -half[1], half[1]],
        min=float(finite.min()),
        max=float(finite.max()),
        data=base64.b64encode(finite.tobytes()).decode(),
    )
