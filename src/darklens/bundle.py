"""A trained system as a folder that needs only torch and safetensors to load: weights and their input contract.

BUNDLE/model.safetensors    weights
BUNDLE/ood.safetensors      reference of the out-of-distribution score; older bundles have none
BUNDLE/bundle.json          how to build the network, what it takes and gives, its calibration, where it came from
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darklens import aliases
from darklens.calibration import Calibration, MahalanobisStats
from darklens.contract import Contract
from darklens.data.ring_statistics import ring_statistics
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.files import atomic_path, read_json, sha256_of, write_json, write_text
from darklens.fit.cache import FitSettings, cached_fits, fit_settings_of
from darklens.fit.features import MAP_NAMES, FitFeatures
from darklens.fit.fitter import fitter
from darklens.fit.summary import findings
from darklens.locate import CONTRACT, locate
from darklens.model_card import model_card
from darklens.models.base import Inputs, NetworkOutput, forward_features, ood_features
from darklens.models.zoo import has_k_network, requires_fitting
from darklens.simulate.backend import Backend

WEIGHTS, OOD_REFERENCE = "model.safetensors", "ood.safetensors"
BATCH_SIZE = 64
MICRO_BATCH = 16  # images of one forward pass on a CPU: the activations then stay in its cache


class Output(NamedTuple):
    """Logits (b, classes) before calibration, and the features (b, f) that `evaluation.ood` takes; float64."""

    logits: np.ndarray
    ood_features: np.ndarray


class Classification(NamedTuple):
    """The classes of b images.

    Attributes:
        probabilities: Calibrated (b, classes).
        findings: Fitted parameters as columns of text, by name; empty for systems that take images.
        maps: The `MAP_NAMES` of the fits (b, m, m); empty for systems that take images.
        ood_features: What `evaluation.ood` scores (b, f).
        inputs: What the network received, as from `Bundle.inputs_of`.
    """

    probabilities: np.ndarray
    findings: dict[str, list[str]]
    maps: dict[str, np.ndarray]
    ood_features: np.ndarray
    inputs: Inputs


Images = Float[np.ndarray, "b 1 n n"] | Float[Tensor, "b 1 n n"]


@runtime_checkable
class InferenceBackend(Protocol):
    """Runs the network of a bundle; a bundle runs its own."""

    def inputs_of(self, images: Images) -> Inputs:
        """Return what the network takes of images."""

    def forward(self, inputs: Inputs) -> NetworkOutput:
        """Return the network's output."""


class Bundle:
    """A loaded system, in evaluation mode on `device`."""

    def __init__(
        self,
        contract: Contract,
        network: nn.Module,
        *,
        ood_reference: MahalanobisStats | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.contract = contract
        self.network = network.eval().to(device)
        self.ood_reference = ood_reference
        self._device = torch.device(device)

    @classmethod
    def load(cls, path: Path | str, *, device: torch.device | str = "cpu") -> "Bundle":
        """Load a bundle folder, the bundle inside a run folder, or one of the Hugging Face hub.

        Args:
            path: A folder, the name of a shipped model, or a repository `owner/name` or `owner/name@revision`.
            device: Where it is to run.

        Raises:
            InputError: If it is missing, damaged, or of a version that this one does not read.
        """
        folder = locate(Path(path))
        try:
            contract = Contract.model_validate(read_json(folder / CONTRACT))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = first["msg"].removeprefix("Value error, ").rstrip(".")
            raise InputError(f"{folder / CONTRACT}: {where}: {what}; train or download it again.") from None
        weights = folder / WEIGHTS
        if not weights.exists() or sha256_of(weights) != contract.weights_sha256:
            raise InputError(f"{weights} is missing or does not match its contract; train or download it again.")
        _check_shapes(weights, contract)
        network = contract.build()
        try:
            network.load_state_dict(_current_names(load_file(weights), network))
        except (SafetensorError, RuntimeError) as error:
            first_line = str(error).splitlines()[0]
            raise InputError(f"{weights} does not fit the network its contract describes ({first_line}).") from None
        return cls(contract, network, ood_reference=_read_ood_reference(folder, contract), device=device)

    def save(self, folder: Path) -> None:
        """Write weights and contract; the contract last, so that an interrupted write is not a bundle."""
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, temporary)
        digests = {"weights_sha256": sha256_of(folder / WEIGHTS), "ood_sha256": ""}
        if self.ood_reference is not None:
            with atomic_path(folder / OOD_REFERENCE) as temporary:
                save_numpy({k: np.ascontiguousarray(v) for k, v in self.ood_reference._asdict().items()}, temporary)
            digests["ood_sha256"] = sha256_of(folder / OOD_REFERENCE)
        contract = self.contract.model_copy(update=digests)
        write_json(folder / CONTRACT, contract.model_dump(mode="json", by_alias=True))

    def save_pretrained(self, folder: Path | str, *, name: str | None = None) -> None:
        """Write a folder that can be uploaded to the Hugging Face hub as it is: the bundle and a README.md.

        Args:
            folder: Where to; it may be a fresh clone of the repository.
            name: `owner/name` in the README's example; by default the folder's name.
        """
        folder = Path(folder)
        self.save(folder)
        write_text(folder / "README.md", model_card(self.contract, name or folder.resolve().name))

    @classmethod
    def from_pretrained(
        cls, name_or_path: Path | str, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "Bundle":
        """Load what `save_pretrained` wrote, from a folder or a repository; as `load`, with the revision apart."""
        return cls.load(f"{name_or_path}@{revision}" if revision else name_or_path, device=device)

    def _taken(self, images: Images) -> Float[Tensor, "b 1 n n"]:
        """Return images on the bundle's device.

        Raises:
            ValueError: If they are not of the model's size.
        """
        side = self.contract.n_pixels
        if tuple(images.shape[1:]) != (1, side, side):
            raise ValueError(
                f"this model takes images of shape (b, 1, {side}, {side}), got {tuple(images.shape)}; "
                "add the axis of channels, or bring other sizes to its field and pixel scale by darklens.data.prepare"
            )
        return torch.as_tensor(images).float().to(self._device)

    @torch.inference_mode()
    def run(self, images: Images) -> tuple[Float[Tensor, "b 1 m m"], Tensor]:
        """Return what the network received for these images, and its output."""
        received = self.contract.preprocess(self._taken(images))
        return received, self.network(received.contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def inputs_of(self, images: Images, *, backend: Backend = "eager") -> Inputs:
        """Return what the network takes of images: pre-processed images, or fits.

        Args:
            images: In any linear scale of brightness.
            backend: How lenses are fitted, see `fit_hypotheses`.

        Raises:
            ValueError: If they are not of the model's size.
        """
        raw = self._taken(images)
        if self.fit_settings is not None:
            return self.fit_settings.extract_features(raw[:, 0], backend=backend)
        return self.contract.preprocess(raw).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, inputs: Inputs) -> NetworkOutput:
        """Return logits, and the features that the last layer receives, for what `inputs_of` returns."""
        if isinstance(inputs, Tensor) and inputs.device.type == "cpu" and len(inputs) > MICRO_BATCH:
            parts = [self.forward(part) for part in torch.split(inputs, MICRO_BATCH)]
            return NetworkOutput(*map(torch.cat, zip(*parts, strict=True)))
        return forward_features(self.network, inputs)

    @torch.inference_mode()
    def output(self, inputs: Inputs, network_output: NetworkOutput | None = None) -> Output:
        """Return logits and OOD features of what `inputs_of` returns; each image's do not depend on the others.

        Args:
            inputs: What the network takes.
            network_output: The network's output, where it is known already.
        """
        logits, last = network_output or self.forward(inputs)
        image = inputs.maps[:, :1] if isinstance(inputs, FitFeatures) else inputs
        features = [last.double(), ring_statistics(image), ood_features(self.network, inputs).double()]
        return Output(logits.double().cpu().numpy(), torch.cat(features, 1).cpu().numpy())

    def calibrated(self, logits: Float[np.ndarray, "b classes"]) -> Float[np.ndarray, "b classes"]:
        """Return the probabilities that logits stand for: the one place where a temperature is applied."""
        return (self.contract.calibration or Calibration()).probabilities(logits)

    def probabilities(self, images: Images) -> Float[np.ndarray, "b classes"]:
        """Return calibrated class probabilities of a batch; each image's do not depend on the others."""
        return self.calibrated(self.output(self.inputs_of(images)).logits)

    def classify(self, images: Images, backend: InferenceBackend | None = None) -> Classification:
        """Return probabilities, and the fitted parameters and maps of a system that takes fits.

        Args:
            images: In any linear scale of brightness.
            backend: Runs `inputs_of` and `forward` in place of the bundle.
        """
        network = backend or self
        inputs = network.inputs_of(images)
        logits, features = self.output(inputs, network.forward(inputs))
        if not isinstance(inputs, FitFeatures):
            return Classification(self.calibrated(logits), {}, {}, features, inputs)
        maps = dict(zip(MAP_NAMES, inputs.maps.cpu().numpy().swapaxes(0, 1), strict=True))
        return Classification(self.calibrated(logits), findings(inputs), maps, features, inputs)

    def outputs_of(self, store: Store, *, workers: int = 1, advance: Callable[[int], None] = lambda _: None) -> Output:
        """Return logits and features of all images of a store.

        Args:
            store: Fits are kept in the store's folder, and read from there the next time.
            workers: Processes that fit.
            advance: Called with the number of images just finished.
        """
        settings = self.fit_settings
        if settings is None:
            blocks = [self.output(self.inputs_of(images)) for images in batched(len(store), store.images, advance)]
        else:
            population, centred = settings
            fits = cached_fits(store, population, centred=centred, workers=workers, advance=advance)
            rows = [range(i, min(i + BATCH_SIZE, len(store))) for i in range(0, len(store), BATCH_SIZE)]
            blocks = [self.output(fits.features(batch).to(self._device)) for batch in rows]
        return Output(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def probabilities_of(
        self, store: Store, *, workers: int = 1, advance: Callable[[int], None] = lambda _: None
    ) -> Float[np.ndarray, "n classes"]:
        """Return calibrated class probabilities of all images of a store; arguments as for `outputs_of`."""
        return self.calibrated(self.outputs_of(store, workers=workers, advance=advance).logits)

    @torch.inference_mode()
    def maps(self, images: Images) -> dict[str, Float[np.ndarray, "b m m"]]:
        """Return what the physics made of each image: `image` as received, `k`, `alpha_x`, `alpha_y`, `source`.

        k and alpha are in arcsec; `source` is the light moved to the source plane, its brightest pixel 1.
        """
        self.require_maps()
        received = self.contract.preprocess(self._taken(images))
        found = {"image": received[:, 0], **self.network.maps(received)}  # type: ignore[operator]  # Informed has it
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._device

    @property
    def card(self) -> str:
        """A line on what was trained on what, and how well it did on held-out images."""
        c = self.contract
        auc = c.validation.get("val_auc")
        judged = "" if auc is None else f", macro AUC {auc:.5f} on its validation images"
        return (
            f"{c.recipe} on {c.data.get('population')}, {c.provenance.get('train_images')} images{judged}; takes "
            f"{c.n_pixels} x {c.n_pixels} pixels of {c.pixel_scale} arcsec; {c.parameters:,} parameters, {c.licence}."
        )

    @property
    def has_maps(self) -> bool:
        """Whether the system makes maps of an image: k(x, y) and its kin, or residuals and evidence."""
        return has_k_network(self.contract.model) or self.fit_settings is not None

    @property
    def fit_settings(self) -> FitSettings | None:
        """How images become the `FitFeatures` that the network takes; None if it takes images."""
        return fit_settings_of(self.contract.model)

    @property
    def requires_fitting(self) -> bool:
        """Whether a lens is fitted to each image before or inside the network, iteratively, so that ONNX cannot."""
        return requires_fitting(self.contract.model)

    @property
    def fit_pixel_scale(self) -> float:
        """Pixel scale of the maps of the fits, arcsec."""
        assert self.fit_settings is not None
        population, centred = self.fit_settings
        return float(fitter(population, centred=centred).fine.pixel_scale)

    @property
    def map_pixel_scale(self) -> float:
        """Pixel scale of the maps, arcsec."""
        return self.contract.pixel_scale * self.contract.preprocess.bin

    def require_maps(self) -> None:
        """Raise `InputError` unless the system makes maps of an image."""
        if not self.has_maps:
            raise InputError(
                f"{self.contract.recipe} has no lens step, so there are no maps; lens_residual has them, and "
                "sis_autoencoder and its kin."
            )

    def require_classifier(self, purpose: str) -> None:
        """Raise `InputError` unless the bundle classifies."""
        if self.contract.task != "classify":
            raise InputError(
                f"{self.contract.recipe} reconstructs images, it does not classify; {purpose} needs a classifier."
            )


def _current_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return weights under the names that the network has now."""
    expected = network.state_dict().keys()
    return {aliases.state_dict_name(name, expected): value for name, value in state.items()}


def _check_shapes(weights: Path, contract: Contract) -> None:
    """Refuse weights of other shapes than the contract says, before memory is taken for either."""
    try:
        with torch.device("meta"):
            expected = {name: list(value.shape) for name, value in contract.build().state_dict().items()}
        with safe_open(weights, framework="pt") as file:
            found = {
                aliases.state_dict_name(name, expected): file.get_slice(name).get_shape()
                for name in file.keys()  # noqa: SIM118 - it is no mapping
            }
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{weights} does not fit the network its contract describes ({first_line}).") from None
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        is_, should = (shapes.get(wrong[0], "missing") for shapes in (found, expected))
        raise InputError(
            f"{weights} does not fit the network its contract describes ({wrong[0]} is {is_}, not {should})."
        )


def _read_ood_reference(folder: Path, contract: Contract) -> MahalanobisStats | None:
    """Return the reference of the out-of-distribution score; None in a bundle without it."""
    if not contract.ood_sha256:
        return None
    path = folder / OOD_REFERENCE
    if not path.exists() or sha256_of(path) != contract.ood_sha256:
        raise InputError(f"{path} is missing or does not match its contract; train or download it again.")
    try:
        return MahalanobisStats(**load_numpy(path))
    except (SafetensorError, TypeError):
        raise InputError(f"{path} does not hold what its contract says; train or download it again.") from None


def sha256_of_bundle(folder: Path) -> str:
    """Return one digest of weights and contract."""
    text = f"{sha256_of(folder / WEIGHTS)},{sha256_of(folder / CONTRACT)}"
    return hashlib.sha256(text.encode()).hexdigest()


def batched(
    n: int, read: Callable[[Sequence[int]], np.ndarray], advance: Callable[[int], None] = lambda _: None
) -> Iterator[np.ndarray]:
    """Yield `read(indices)` for blocks of indices below n; `advance` is called after each block is used."""
    for start in range(0, n, BATCH_SIZE):
        stop = min(start + BATCH_SIZE, n)
        yield read(range(start, stop))
        advance(stop - start)
