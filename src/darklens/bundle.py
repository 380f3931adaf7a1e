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

from darklens.calibration import Calibration, MahalanobisStats
from darklens.contract import Contract
from darklens.data.ring_statistics import ring_statistics
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.files import atomic_path, read_json, sha256_of, write_json, write_text
from darklens.fit.fitter import fitter
from darklens.fit.table import CHANNELS, Seen, fits_of
from darklens.locate import CONTRACT, locate
from darklens.model_card import model_card
from darklens.models import lens_residual
from darklens.models.ensemble import Ensemble, EnsembleConfig, fit_of
from darklens.models.lens_residual import LensResidual
from darklens.models.zoo import fits_lenses, has_k_network, last_layer
from darklens.simulate.backend import Backend

WEIGHTS, OOD_REFERENCE = "model.safetensors", "ood.safetensors"
BATCH_SIZE = 64
AT_ONCE = 16  # images that a processor's network is shown together: its layers then stay in the cache


class Answer(NamedTuple):
    """Logits (b, classes), and what the last layer makes them of (b, f), on the network's device."""

    logits: Tensor
    inner: Tensor


class Output(NamedTuple):
    """Logits (b, classes) before calibration, and features (b, f) by which unfamiliar images are known; float64."""

    logits: np.ndarray
    features: np.ndarray


class Classified(NamedTuple):
    """Probabilities (b, classes), and by name what was found of each image and the maps that were looked at.

    `features` (b, f) are those that `evaluation.ood` judges; `shown` is what the network was shown, as from `see`.
    """

    probabilities: np.ndarray
    findings: dict[str, list[str]]
    maps: dict[str, np.ndarray]
    features: np.ndarray
    shown: Tensor | Seen


Images = Float[np.ndarray, "b 1 n n"] | Float[Tensor, "b 1 n n"]


@runtime_checkable
class Engine(Protocol):
    """What does the arithmetic of a bundle; a bundle does its own."""

    def see(self, images: Images) -> Tensor | Seen:
        """Return what the network is shown of images."""

    def answer(self, shown: Tensor | Seen) -> Answer:
        """Return what the network says to it."""


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
            network.load_state_dict(load_file(weights))
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
    def see(self, images: Images, *, engine: Backend = "eager") -> Tensor | Seen:
        """Return what the network is shown of images: them, pre-processed, or the fits of lenses to them.

        Args:
            images: In any linear scale of brightness.
            engine: How lenses are fitted, see `weigh_hypotheses`.

        Raises:
            ValueError: If they are not of the model's size.
        """
        raw = self._taken(images)
        if isinstance(self.network, LensResidual | Ensemble) and self.fits_lenses:
            seen: Seen = self.network.see(raw, engine=engine)
            return seen
        return self.contract.preprocess(raw).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def answer(self, shown: Tensor | Seen) -> Answer:
        """Return logits, and what the last layer makes them of, for what `see` returns."""
        if isinstance(shown, Tensor) and shown.device.type == "cpu" and len(shown) > AT_ONCE:
            return Answer(
                *map(torch.cat, zip(*(self.answer(some) for some in torch.split(shown, AT_ONCE)), strict=True))
            )
        caught: list[Tensor] = []
        handle = self.last_layer.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        try:
            logits = self.network(shown)
            return Answer(logits, caught[0])
        finally:
            handle.remove()

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that makes the logits; of an ensemble its first member's."""
        return last_layer(self.network.members[0] if isinstance(self.network, Ensemble) else self.network)

    @torch.inference_mode()
    def output(self, shown: Tensor | Seen, answer: Answer | None = None) -> Output:
        """Return logits and features of what `see` returns; each image's do not depend on the others.

        Args:
            shown: What the network is shown.
            answer: What the network says to it, where that is known already.
        """
        logits, inner = answer or self.answer(shown)
        looks = [shown.maps[:, :1], lens_residual.unusual(shown.numbers)] if isinstance(shown, Seen) else [shown]
        features = torch.cat([inner.double(), ring_statistics(looks[0]), *(v.double() for v in looks[1:])], 1)
        return Output(logits.double().cpu().numpy(), features.cpu().numpy())

    def calibrated(self, logits: Float[np.ndarray, "b classes"]) -> Float[np.ndarray, "b classes"]:
        """Return the probabilities that logits stand for: the one place where a temperature is applied."""
        return (self.contract.calibration or Calibration()).probabilities(logits)

    def probabilities(self, images: Images) -> Float[np.ndarray, "b classes"]:
        """Return calibrated class probabilities of a batch; each image's do not depend on the others."""
        return self.calibrated(self.output(self.see(images)).logits)

    def classify(self, images: Images, engine: Engine | None = None) -> Classified:
        """Return probabilities, and of a system that fits lenses what it found, a column for each name.

        Args:
            images: In any linear scale of brightness.
            engine: Does the arithmetic in place of `see` and `answer`.
        """
        how = engine or self
        shown = how.see(images)
        logits, features = self.output(shown, how.answer(shown))
        if not isinstance(shown, Seen):
            return Classified(self.calibrated(logits), {}, {}, features, shown)
        maps = dict(zip(CHANNELS, shown.maps.cpu().numpy().swapaxes(0, 1), strict=True))
        return Classified(self.calibrated(logits), lens_residual.findings(shown.numbers), maps, features, shown)

    def outputs_of(self, store: Store, *, workers: int = 1, advance: Callable[[int], None] = lambda _: None) -> Output:
        """Return logits and features of all images of a store.

        Args:
            store: A system that fits lenses keeps its fits in the store's folder and finds them there again.
            workers: Processes that fit.
            advance: Called with the number of images just finished.
        """
        how = fit_of(self.contract.model)
        if how is None:
            blocks = [self.output(self.see(images)) for images in batched(len(store), store.images, advance)]
        else:
            fits = fits_of(store, how.population, centred=how.centred, workers=workers, advance=advance)
            shown = (fits.seen(range(i, min(i + BATCH_SIZE, len(store)))) for i in range(0, len(store), BATCH_SIZE))
            blocks = [self.output(Seen(*(v.to(self._device) for v in seen))) for seen in shown]
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
        return has_k_network(self.contract.model) or self.fits_lenses

    @property
    def fits_lenses(self) -> bool:
        """Whether the system fits lenses to images."""
        return fit_of(self.contract.model) is not None

    @property
    def fits_on_the_way(self) -> bool:
        """Whether a lens is fitted to each image before or inside the network, step by step, which ONNX cannot say."""
        model = self.contract.model
        return any(fits_lenses(own) for own in (model.members if isinstance(model, EnsembleConfig) else [model]))

    @property
    def fit_pixel_scale(self) -> float:
        """Pixel scale of the maps of a system that fits lenses, arcsec."""
        how = fit_of(self.contract.model)
        assert how is not None
        return float(fitter(how.population, centred=how.centred).fine.pixel_scale)

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


def _check_shapes(weights: Path, contract: Contract) -> None:
    """Refuse weights of other shapes than the contract says, before memory is taken for either."""
    try:
        with torch.device("meta"):
            expected = {name: list(value.shape) for name, value in contract.build().state_dict().items()}
        with safe_open(weights, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no mapping
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
