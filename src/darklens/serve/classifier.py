"""The classification of prepared images as responses of the server."""

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from darklens.bundle import Bundle, Part, SmoothFit, classify
from darklens.config import UNKNOWN
from darklens.data.prepare import stacked_masks
from darklens.evaluation.columns import prediction_columns
from darklens.fit.checks import delta_chi2_of, hypothesis_of
from darklens.fit.features import FitFeatures
from darklens.fit.macro import MacroFit
from darklens.fit.smooth import CENTRE
from darklens.fit.summary import fit_succeeded
from darklens.populations.population import Population
from darklens.populations.substructure_models import LineMass, NoSubstructure, PointMasses
from darklens.serve.batching import Job
from darklens.serve.responses import Fit, ImageResult, Map, OutOfDistribution, Quantity, Suggestion

_ARCSEC = {"theta_E", "source_x", "source_y", *CENTRE}
_SMOOTH = ("theta_E", "gamma1", "gamma2", "source_x", "source_y", *CENTRE)
_SIGMA = "standard deviations"
_FAILED = "No fit describes the image, so the class is based on the image alone."
# Name in the response: name in `Classification.maps`, label, unit.
_FROM_FITS = {
    "residual_line": ("line_residual", "Residual with a line", _SIGMA),
    "residual_points": ("point_residual", "Residual with point masses", _SIGMA),
    "evidence_point": ("evidence", "Evidence for a point mass", _SIGMA),
}
_FROM_NETWORK = {
    "k": ("k", "Predicted map k(x, y)", "arcsec"),
    "deflection_x": ("alpha_x", "Deflection along x", "arcsec"),
    "deflection_y": ("alpha_y", "Deflection along y", "arcsec"),
    "source": ("source", "Light in the source plane", "of the brightest pixel"),
}


class Classifier:
    """Classifies the images of requests with one bundle, and turns each `Classification` into a response."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __call__(self, jobs: Sequence[Job]) -> list[ImageResult]:
        """Return a result for each job; jobs of one exposure, with maps or without, are classified together."""
        fits = self._bundle.check_settings is not None or bool(self._bundle.contract.fallback)
        groups: dict[tuple[float, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault((job.exposure if fits else 1.0, job.maps), []).append(i)
        results: dict[int, ImageResult] = {}
        for rows in groups.values():
            results |= zip(rows, self._classify_batch([jobs[i] for i in rows]), strict=True)
        return [results[i] for i in range(len(jobs))]

    def _classify_batch(self, jobs: Sequence[Job]) -> list[ImageResult]:
        images = np.stack([job.pixels for job in jobs])[:, None]
        exposure = None if jobs[0].exposure == 1 else np.full_like(images, jobs[0].exposure)
        mask = stacked_masks([job.mask for job in jobs], images.shape)
        results: dict[int, ImageResult] = {}
        for part in classify(self._bundle, images, exposure=exposure, mask=mask, with_maps=jobs[0].maps):
            smooth = None
            if jobs[0].maps and part.bundle.fit_settings is not None:
                depth, masked = (None if each is None else each[part.indices] for each in (exposure, mask))
                smooth = part.bundle.smooth_fit(images[part.indices], exposure=depth, mask=masked)
            for k, i in enumerate(part.indices):
                result = _result(jobs[i], part, k)
                more = _fit_results(part, smooth, k, str(result.predicted))
                if jobs[i].maps:
                    more["maps"] = _maps(images[i, 0], part, smooth, k)
                results[i] = result.model_copy(update=more)
        return [results[i] for i in range(len(jobs))]


def _result(job: Job, part: Part, k: int) -> ImageResult:
    contract, classification = part.bundle.contract, part.classification.rows([k])
    columns = {
        name: column[0]
        for name, column in prediction_columns(
            part.bundle, classification.probabilities, classification.ood_features, classification.doubts
        ).items()
    }
    calibration, probabilities = contract.calibration, classification.probabilities[0]
    has_sets = calibration is not None and bool(calibration.conformal)
    members = columns["set"].split("|") if columns["set"] else []
    ood = None
    if calibration is not None and calibration.ood is not None and columns["ood_score"]:
        ood = OutOfDistribution(
            score=float(columns["ood_score"]), threshold=calibration.ood.p99, unfamiliar=columns["ood"] == "yes"
        )
    return ImageResult(
        name=job.name,
        status="ok",
        predicted=contract.classes[int(probabilities.argmax())],
        probabilities=dict(zip(contract.classes, map(float, probabilities), strict=True)),
        set=members,
        coverage=calibration.conformal[0].level if has_sets and calibration is not None else None,
        dont_know=columns["verdict"] == UNKNOWN or (has_sets and len(members) != 1),
        verdict=columns["verdict"],
        reasons=list(classification.doubts[0]),
        fallback=contract.recipe if part.fallback_reasons[k] else None,
        fallback_reasons=list(part.fallback_reasons[k]),
        ood=ood,
        changes=list(job.changes),
        offset=list(job.offset),
    )


def _fit_results(part: Part, smooth: SmoothFit | None, k: int, predicted: str) -> dict[str, object]:
    """Return the parts of a result that come from the fits of an image; none for a system without."""
    settings, features = part.bundle.fit_settings, part.classification.inputs
    if settings is None or not isinstance(features, FitFeatures):
        return {}
    value = {name: float(column[k]) for name, column in features.columns().items()}
    succeeded = bool(fit_succeeded(features)[k])
    without_errors = {name: _quantity(name, value[name], None) for name in _SMOOTH}
    fit = Fit(
        converged=value["converged"] > 0.5,
        chi2_per_pixel=value["deviance"] / max(value["n_pixels_fitted"], 1.0),
        parameters=_with_errors(smooth.macro, k) if smooth else without_errors,
        message=None if succeeded else _FAILED,
    )
    deviance = {
        name: value["deviance"] - delta_chi2_of(hypothesis_of(settings.population, name), value)
        for name in settings.population.classes
        if name in part.bundle.contract.classes
    }
    suggestion = _suggestion(settings.population, predicted, value) if succeeded else None
    return {"fit": fit, "hypotheses": deviance, "suggestion": suggestion}


def _maps(image: Float[np.ndarray, "n n"], part: Part, smooth: SmoothFit | None, k: int) -> dict[str, Map]:
    scale, maps = part.bundle.contract.pixel_scale, part.classification.maps
    response = {"image": _map(image, "Image", "image units", scale)}
    if smooth is not None:
        response |= _smooth_fit_maps(smooth, k, scale)
    for name, (key, label, unit) in (_FROM_NETWORK if smooth is None else _FROM_FITS).items():
        if key in maps:
            response[name] = _map(maps[key][k], label, unit, part.bundle.map_pixel_scale)
    return response


def _with_errors(macro: MacroFit, i: int) -> dict[str, Quantity]:
    deviations = macro.covariance[i].diagonal().clamp_min(0).sqrt().tolist()
    rows = zip(macro.names, macro.parameters[i].tolist(), deviations, strict=True)
    return {name: _quantity(name, value, error) for name, value, error in rows}


def _quantity(name: str, value: float, error: float | None) -> Quantity:
    return Quantity(value=value, error=error, unit="arcsec" if name in _ARCSEC else "")


def _suggestion(population: Population, predicted: str, value: Mapping[str, float]) -> Suggestion | None:
    """Return the substructure of the predicted class that the fit found; None where that class has none."""
    spec = population.classes.get(predicted)
    if spec is None or isinstance(spec, NoSubstructure):
        return None
    prefix, of_line = "point_1", {}
    units = {"x": "arcsec", "y": "arcsec", "mass": "M_sun", "theta_E_squared": "arcsec^2"}
    if isinstance(spec, LineMass):
        prefix, units = "line", units | {"length": "arcsec", "angle": "deg"}
        of_line = {"length": value["line_length"], "angle": float(np.degrees(value["line_angle"])) % 180}
    squared = value[f"{prefix}_mass"]
    return Suggestion(
        kind="line" if of_line else "point",
        x=value[f"{prefix}_x"],
        y=value[f"{prefix}_y"],
        mass=_solar(population, squared, value["theta_E"]),
        theta_E_squared=squared,
        units=units,
        **of_line,
    )


def _solar(population: Population, squared: float, theta_E: float) -> float | None:
    """Return a mass in solar masses, if the population says what mass its lenses have."""
    specs = [spec for spec in population.classes.values() if isinstance(spec, PointMasses)]
    return squared / specs[0].theta_E_squared(1.0, theta_E) if specs else None


def _smooth_fit_maps(smooth: SmoothFit, i: int, pixel_scale: float) -> dict[str, Map]:
    macro, evidence = smooth
    delta_chi2 = evidence.delta_chi2_line[i].cpu()
    return {
        "smooth": _map(macro.model[i].cpu().numpy(), "Fitted smooth lens", "image units", pixel_scale),
        "residual": _map(macro.residual[i].cpu().numpy(), "Residual of the smooth lens", _SIGMA, pixel_scale),
        "evidence_line": _map(
            (delta_chi2.sign() * delta_chi2.abs().sqrt()).numpy(),
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
