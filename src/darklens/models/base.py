"""What systems share: the interface of classifiers, and the settings of systems that fit a population's lenses."""

import copy
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from darklens import populations
from darklens.config import Frozen
from darklens.errors import ConfigError
from darklens.fit.cache import FitSettings
from darklens.fit.features import FitFeatures
from darklens.populations.population import Population
from darklens.populations.psf_models import ImagePSF

DEFAULT_POPULATION = "common-test-i"
Inputs = Tensor | FitFeatures
"""What a network takes: images (b, 1, n, n), or the features of fits where its settings have `fit_settings`."""


class NetworkOutput(NamedTuple):
    """Logits (b, classes), and the features (b, f) that the last layer receives."""

    logits: Float[Tensor, "b classes"]
    features: Float[Tensor, "b f"]


@runtime_checkable
class Classifier(Protocol):
    """The methods of a classifier. Of a plug-in, `forward` and a `head` suffice, see `forward_features` below."""

    def encode(self, inputs: Any) -> Tensor:
        """Return the representation that the head receives."""

    def forward(self, inputs: Any) -> Tensor:
        """Return logits (b, classes)."""

    def forward_features(self, inputs: Any) -> NetworkOutput:
        """Return logits, and the features that the last layer receives."""


class HeadClassifier(nn.Module):
    """A classifier made of `encode`, which subclasses define, and `head`, a sequence that ends with a linear layer."""

    head: nn.Sequential

    def encode(self, inputs: Any) -> Tensor:
        """Return the representation that the head receives."""
        raise NotImplementedError

    def forward_features(self, inputs: Any) -> NetworkOutput:
        """Return logits, and the features that the last layer receives."""
        return apply_head(self.head, self.encode(inputs))

    def forward(self, inputs: Any) -> Float[Tensor, "b classes"]:
        """Return logits; softmax belongs to the loss and to prediction, once each."""
        return self.forward_features(inputs).logits


def apply_head(head: nn.Sequential, encoded: Tensor) -> NetworkOutput:
    """Return the output of a head and the input of its last layer."""
    features = logits = encoded
    for layer in head:
        features, logits = logits, layer(logits)
    return NetworkOutput(logits, features)


def forward_features(network: nn.Module, inputs: Inputs) -> NetworkOutput:
    """Return the `forward_features` of a network; for one without, its `forward` and the input of its last layer.

    Raises:
        ConfigError: If the network has neither `forward_features` nor a `head` that ends with an `nn.Linear`.
    """
    method = getattr(network, "forward_features", None)
    if method is not None:
        output: NetworkOutput = method(inputs)
        return output
    caught: list[Tensor] = []
    with _last_layer(network).register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0])):
        return NetworkOutput(network(inputs), caught[-1])


def ood_features(network: nn.Module, inputs: Inputs) -> Float[Tensor, "b u"]:
    """Return the `ood_features` of a network, which the OOD score adds to the last features; (b, 0) without them."""
    method = getattr(network, "ood_features", None)
    if method is not None:
        features: Tensor = method(inputs)
        return features
    images = inputs.maps if isinstance(inputs, FitFeatures) else inputs
    return images.new_zeros(len(images), 0)


class WithFeatures(nn.Module):
    """A classifier as a module whose `forward` returns logits and features, for compilers and exporters."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._caught: list[Tensor] = []
        self._has_features = hasattr(network, "forward_features")
        if not self._has_features:  # a copy: compilers take no hook that is registered in `forward`
            network = copy.deepcopy(network)
            _last_layer(network).register_forward_pre_hook(lambda _, arguments: self._caught.append(arguments[0]))
        self.network: Any = network

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and features."""
        if self._has_features:
            logits, features = self.network.forward_features(inputs)
            return logits, features
        self._caught.clear()
        return self.network(inputs), self._caught[0]


def _last_layer(network: nn.Module) -> nn.Linear:
    head = getattr(network, "head", None)
    layer = head[-1] if isinstance(head, nn.Sequential) else head
    if not isinstance(layer, nn.Linear):
        raise ConfigError(
            f"{type(network).__name__} has no `forward_features`, and no `head` that is an nn.Linear or an "
            "nn.Sequential that ends with one; a classifier needs either (docs/how-to/extend.md)."
        )
    return layer


class OnPopulation(Frozen):
    """Settings that systems share which fit the smooth lenses of a population."""

    requires_fitting: ClassVar[bool] = True

    population: Population = Field(
        description="whose smooth lenses are fitted: a name from `darklens populations`, or its contents"
    )
    overrides: tuple[str, ...] = Field(
        default=(), description="changes to a population that is given by name, such as field.n_pixels=100"
    )
    centred: bool = Field(
        default=False,
        description="fix the lens at the centre of the image; otherwise its position is fitted, within 0.3 arcsec",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, tree: Any) -> Any:
        """Replace a population's name by its contents with the overrides applied."""
        if not isinstance(tree, dict):
            return tree
        population = tree.get("population", DEFAULT_POPULATION)
        if not isinstance(population, str):
            return tree
        return tree | {"population": populations.get(population, tuple(tree.get("overrides", ()))), "overrides": ()}

    @field_validator("population")
    @classmethod
    def _is_complete(cls, population: Population) -> Population:
        """Refuse a population whose PSF is a file: a bundle reads none, and a model would depend on it."""
        if isinstance(population.psf, ImagePSF) and population.psf.values is None:
            raise ValueError("psf.values is missing; give the population as a YAML file, from which it is read")
        return population

    @property
    def fit_settings(self) -> FitSettings | None:
        """Settings of the fits whose `FitFeatures` the network takes; None if it takes images."""
        return FitSettings(self.population, self.centred)
