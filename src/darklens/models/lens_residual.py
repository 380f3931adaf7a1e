"""Fit the smooth lens, try a line and some points beside it, and classify what each of them leaves unexplained."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from darklens import populations
from darklens.config import Frozen
from darklens.fit.hypotheses import N_POINTS
from darklens.fit.table import CHANNELS, NUMBERS, Seen, see
from darklens.models.tower import Tower
from darklens.populations.population import Population
from darklens.simulate.backend import Backend

# Maps are in standard deviations, the image from 0 to 1: to the size that a network likes.
_UNITS = {"image": 1.0, "residual": 3.0, "line_residual": 3.0, "point_residual": 3.0, "evidence": 5.0}
_UNITS["line_evidence"] = 5.0
_FAILED = 6.0  # deviance per block that the best hypothesis leaves; 2.6 at most, by benchmarks/hypotheses.py
_IMAGE_LOSS = 0.2  # the weight of the branch that sees the image alone


class OnPopulation(Frozen):
    """What systems share that fit the smooth lenses of a population."""

    population: Population = Field(
        description="whose smooth lenses are fitted: a name from `darklens populations`, or its contents"
    )
    overrides: tuple[str, ...] = Field(
        default=(), description="changes to a population that is given by name, such as field.n_pixels=100"
    )
    centred: bool = Field(
        default=False,
        description="hold lenses at the middle of the image; otherwise the fit finds their place, within 0.3 arcsec",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, tree: Any) -> Any:
        """Put the population's contents, with the changes, in the place of its name."""
        if not isinstance(tree, dict):
            return tree
        chosen = tree.get("population", "common-test-i")
        if not isinstance(chosen, str):
            return tree
        return tree | {"population": populations.get(chosen, tuple(tree.get("overrides", ()))), "overrides": ()}


class LensResidualConfig(OnPopulation):
    """Fits smooth lens, line and points, classifies what they leave; falls back to the image where the fit fails."""

    kind: Literal["lens_residual"] = "lens_residual"
    sees: Literal["all", "maps", "numbers", "image", "image_and_residual"] = Field(
        default="all", description="what the classifier is shown; less than all is for comparisons"
    )
    width: int = Field(default=24, ge=4, description="channels of the first convolution")


class LensResidual(nn.Module):
    """A small network on the residuals and evidence maps of the fits, and on their numbers.

    It takes images, which it fits, or `Seen`, the fits themselves.
    """

    temperature: Tensor

    def __init__(self, config: LensResidualConfig, *, n_classes: int) -> None:
        super().__init__()
        self._config = config
        w = config.width
        self.tower = Tower(len(_channels(config)), w)
        self.normalise = nn.BatchNorm1d(_TELLING)
        self.of_numbers = nn.Sequential(
            *(nn.Linear(_TELLING, 64), nn.ReLU(inplace=True)),
            *(nn.Linear(64, 64), nn.ReLU(inplace=True)),
        )
        both = Tower.features(w) + 64
        self.head = nn.Sequential(nn.Linear(both, 64), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(64, n_classes))
        # Likelihood ratios nearly decide by themselves; from few images, straight lines through them learn soonest.
        self.direct = nn.Linear(_TELLING, n_classes)
        self.image_branch = nn.Sequential(Tower(1, w // 2), nn.Linear(Tower.features(w // 2), n_classes))
        # One since the calibration is a record of the bundle; bundles from before have theirs here.
        self.register_buffer("temperature", torch.ones(()))

    def see(self, images: Float[Tensor, "b 1 n n"], *, engine: Backend = "eager") -> Seen:
        """Return the fits of images; `engine` as for `weigh_hypotheses`."""
        with torch.autocast(images.device.type, enabled=False):
            return see(images[:, 0].float(), self._config.population, engine=engine, centred=self._config.centred)

    def forward(self, images: Tensor | Seen) -> Float[Tensor, "b classes"]:
        """Return logits; where the fit failed, those of the image alone."""
        seen = images if isinstance(images, Seen) else self.see(images)
        logits, of_image = self.branches(seen)
        return torch.where(fitted(seen.numbers)[:, None], logits, of_image) / self.temperature

    def branches(self, seen: Seen) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b classes"]]:
        """Return the logits of the fits, and of the image alone."""
        maps = seen.maps / seen.maps.new_tensor([_UNITS[name] for name in CHANNELS])[:, None, None]
        shown = maps[:, _channels(self._config)]
        with_maps = self._config.sees != "numbers"
        none = shown.new_zeros(len(shown), Tower.features(self._config.width))
        features = self.tower(shown) if with_maps else none
        told = self.normalise(telling(seen.numbers))
        if self._config.sees not in ("all", "numbers"):
            told = torch.zeros_like(told)
        logits = self.head(torch.cat([features, self.of_numbers(told)], 1)) + self.direct(told)
        return logits, self.image_branch(maps[:, :1])

    def losses(self, images: Tensor | Seen, labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return each image's loss in training: that of the fits, and a part of that of the image alone."""
        seen = images if isinstance(images, Seen) else self.see(images)
        of_fit, of_image = (
            nn.functional.cross_entropy(logits.float(), labels, reduction="none") for logits in self.branches(seen)
        )
        return of_fit + _IMAGE_LOSS * of_image


def _channels(config: LensResidualConfig) -> list[int]:
    shown = {"image": ("image",), "image_and_residual": ("image", "residual")}.get(config.sees, CHANNELS)
    return [CHANNELS.index(name) for name in shown]


def fitted(numbers: Float[Tensor, "b k"]) -> Bool[Tensor, " b"]:
    """Return whether any hypothesis explains the image: a lens unlike the population's is explained by none."""
    gain = torch.maximum(_column(numbers, "line_gain"), _column(numbers, f"point_gain_{N_POINTS}"))
    return _column(numbers, "deviance") - gain < _FAILED * _column(numbers, "blocks")


def unusual(numbers: Float[Tensor, "b k"]) -> Float[Tensor, "b u"]:
    """Return numbers by which a lens unlike the population's stands out, direction included.

    The logarithm of the chi2 per block that the best hypothesis leaves, shear, place of the source, and `telling`.
    """
    gain = torch.maximum(_column(numbers, "line_gain"), _column(numbers, f"point_gain_{N_POINTS}"))
    chi2 = (_column(numbers, "deviance") - gain) / _column(numbers, "blocks")
    placed = [_column(numbers, name) for name in ("gamma1", "gamma2", "source_x", "source_y")]
    return torch.cat([torch.stack([chi2.clamp_min(1e-3).log(), *placed], 1), telling(numbers)], 1)


def findings(numbers: Float[Tensor, "b k"]) -> dict[str, list[str]]:
    """Return what the fits found of each image, as columns of a table: arcsec, arcsec^2 of masses (theta_E^2), degrees.

    `delta_chi2_line` and `delta_chi2_points` are by how much one line and all point masses lower the deviance,
    `beside_line` what a point beside the line would lower it by, `chi2` the deviance per block of pixels.
    """
    value = {name: _column(numbers, name) for name in NUMBERS}
    columns = {
        **{name: value[name] for name in ("theta_E", "centre_x", "centre_y")},
        "chi2": value["deviance"] / value["blocks"],
        "chi2_line": (value["deviance"] - value["line_gain"]) / value["blocks"],
        "chi2_points": (value["deviance"] - value[f"point_gain_{N_POINTS}"]) / value["blocks"],
        "delta_chi2_line": value["line_gain"],
        "delta_chi2_points": value[f"point_gain_{N_POINTS}"],
        "beside_line": value["beside_line"],
        **{name: value[name] for name in ("line_mass", "line_x", "line_y", "line_length")},
        "line_angle": torch.rad2deg(value["line_angle"]) % 180,
        **{f"point_{name}": value[f"point_1_{name}"] for name in ("mass", "x", "y")},
    }
    states = ["ok" if good else "failed, judged by the image alone" for good in fitted(numbers).tolist()]
    return {"fit": states, **{name: [f"{v:.5g}" for v in column.tolist()] for name, column in columns.items()}}


_TELLING = 13 + 3 * N_POINTS


def telling(numbers: Float[Tensor, "b k"]) -> Float[Tensor, "b t"]:
    """Return what of the numbers tells the classes apart and is the same however the image is turned and stored.

    Not the further noise: simulated counts have none, and a network that never saw any goes astray where there is some.
    """
    value = {name: _column(numbers, name) for name in NUMBERS}
    gains = [value[f"point_gain_{k + 1}"] for k in range(N_POINTS)]
    mass = [value[f"point_{k + 1}_mass"] for k in range(N_POINTS)]
    squared = value["theta_E"].square().clamp_min(0.01)
    scatter = (2 * value["blocks"]).sqrt()
    told = [
        *(_log(value[name]) for name in ("line_gain", "beside_line", "point_peak", "beside_points")),
        *(_log(gain) for gain in gains),
        *(_log(value["line_gain"] - gain) for gain in gains),
        _log((value["deviance"] - value["blocks"]) / scatter),
        _log((value["deviance"] - value["line_gain"] - value["blocks"]) / scatter),
        _log((value["deviance"] - gains[-1] - value["blocks"]) / scatter),
        20 * value["line_mass"] / squared,
        value["line_length"],
        torch.hypot(value["line_x"] - value["centre_x"], value["line_y"] - value["centre_y"]),
        value["theta_E"],
        torch.hypot(value["gamma1"], value["gamma2"]),
        torch.hypot(value["source_x"], value["source_y"]),
        *(50 * v / squared for v in mass),
    ]
    return torch.stack(told, 1)


def _log(value: Tensor) -> Tensor:
    return value.sign() * value.abs().log1p()


def _column(numbers: Float[Tensor, "b k"], name: str) -> Float[Tensor, " b"]:
    return numbers[:, NUMBERS.index(name)]
