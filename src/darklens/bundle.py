"""A trained system as a folder that needs only torch and safetensors to load: weights and their input contract.

BUNDLE/model.safetensors    weights
BUNDLE/bundle.json          how to build the network, what it takes and gives, where it came from
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.data.preprocess import Preprocess
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.files import atomic_path, read_json, sha256_of, write_json
from darklens.fit.fitter import fitter
from darklens.fit.table import CHANNELS, Seen, fits_of
from darklens.models import lens_residual
from darklens.models.lens_residual import LensResidual, LensResidualConfig
from darklens.models.zoo import ModelConfig, Task, build, fits_lenses, has_k_network, task_of

WEIGHTS, CONTRACT = "model.safetensors", "bundle.json"
BATCH_SIZE = 64
SHIPPED = resources.files("darklens") / "weights"
DEFAULT_MODEL = "lens_residual"


class Contract(Frozen):
    """What a bundle takes, gives, and where it came from."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    recipe: str
    recipe_sha256: str
    model: ModelConfig
    classes: list[str]
    n_pixels: int = Field(description="pixels along a side of the images it takes")
    pixel_scale: float = Field(description="arcsec, of the images it takes")
    preprocess: Preprocess
    parameters: int
    weights_sha256: str = ""
    data: dict[str, Any] = Field(description="the training data: population, seed, sha256")
    validation: dict[str, float] = Field(description="metrics of the chosen epoch on the validation images")
    provenance: dict[str, Any] = Field(description="version, commit, hardware, seed, train_seconds, train_images")
    licence: str = "MIT"

    @property
    def task(self) -> Task:
        """`classify` or `reconstruct`."""
        return task_of(self.model)

    def build(self) -> nn.Module:
        """Return the network with fresh weights."""
        return build(
            self.model,
            n_pixels=self.preprocess.output_size(self.n_pixels),
            pixel_scale=self.pixel_scale * self.preprocess.bin,
            n_classes=len(self.classes),
        )


class Classified(NamedTuple):
    """Probabilities (b, classes), and by name what was found of each image and the maps that were looked at."""

    probabilities: np.ndarray
    findings: dict[str, list[str]]
    maps: dict[str, np.ndarray]


class Bundle:
    """A loaded system, in evaluation mode on `device`."""

    def __init__(self, contract: Contract, network: nn.Module, *, device: torch.device | str = "cpu") -> None:
        self.contract = contract
        self.network = network.eval().to(device)
        self._device = torch.device(device)

    @classmethod
    def load(cls, path: Path | str, *, device: torch.device | str = "cpu") -> "Bundle":
        """Load a bundle folder, or the bundle inside a run folder.

        Raises:
            InputError: If it is missing, damaged, or of a version that this one does not read.
        """
        folder = locate(Path(path))
        try:
            contract = Contract.model_validate(read_json(folder / CONTRACT))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{folder / CONTRACT}: {where}: {first['msg']}; train or download it again.") from None
        weights = folder / WEIGHTS
        if not weights.exists() or sha256_of(weights) != contract.weights_sha256:
            raise InputError(f"{weights} is missing or does not match its contract; train or download it again.")
        network = contract.build()
        try:
            network.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            first_line = str(error).splitlines()[0]
            raise InputError(f"{weights} does not fit the network its contract describes ({first_line}).") from None
        return cls(contract, network, device=device)

    def save(self, folder: Path) -> None:
        """Write weights and contract; the contract last, so that an interrupted write is not a bundle."""
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, temporary)
        contract = self.contract.model_copy(update={"weights_sha256": sha256_of(folder / WEIGHTS)})
        write_json(folder / CONTRACT, contract.model_dump(mode="json", by_alias=True))

    @torch.inference_mode()
    def run(self, images: Float[np.ndarray, "b 1 n n"]) -> tuple[Float[Tensor, "b 1 m m"], Tensor]:
        """Return what the network received for these images, and its output."""
        received = self.contract.preprocess(torch.from_numpy(images).to(self._device))
        return received, self.network(received.contiguous(memory_format=torch.channels_last))

    def probabilities(self, images: Float[np.ndarray, "b 1 n n"]) -> Float[np.ndarray, "b classes"]:
        """Return class probabilities of a batch; each image's do not depend on the others."""
        probabilities: np.ndarray = self.run(images)[1].double().softmax(1).cpu().numpy()
        return probabilities

    @torch.inference_mode()
    def classify(self, images: Float[np.ndarray, "b 1 n n"]) -> Classified:
        """Return probabilities, and of a system that fits lenses what it found, a column for each name."""
        if not isinstance(self.network, LensResidual):
            return Classified(self.probabilities(images), {}, {})
        seen = self.network.see(torch.from_numpy(images).to(self._device))
        probabilities = self.network(seen).double().softmax(1).cpu().numpy()
        maps = dict(zip(CHANNELS, seen.maps.cpu().numpy().swapaxes(0, 1), strict=True))
        return Classified(probabilities, lens_residual.findings(seen.numbers), maps)

    def probabilities_of(
        self, store: Store, *, workers: int = 1, advance: Callable[[int], None] = lambda _: None
    ) -> Float[np.ndarray, "n classes"]:
        """Return class probabilities of all images of a store.

        Args:
            store: A system that fits lenses keeps its fits in the store's folder and finds them there again.
            workers: Processes that fit.
            advance: Called with the number of images just finished.
        """
        if not isinstance(self.contract.model, LensResidualConfig):
            return np.concatenate([self.probabilities(images) for images in batched(len(store), store.images, advance)])
        fits = fits_of(store, self.contract.model.population, workers=workers, advance=advance)
        blocks = []
        with torch.inference_mode():
            for start in range(0, len(store), BATCH_SIZE):
                seen = fits.seen(range(start, min(start + BATCH_SIZE, len(store))))
                logits = self.network(Seen(*(v.to(self._device) for v in seen)))
                blocks.append(logits.double().softmax(1).cpu().numpy())
        return np.concatenate(blocks)

    @torch.inference_mode()
    def maps(self, images: Float[np.ndarray, "b 1 n n"]) -> dict[str, Float[np.ndarray, "b m m"]]:
        """Return what the physics made of each image: `image` as received, `k`, `alpha_x`, `alpha_y`, `source`.

        k and alpha are in arcsec; `source` is the light moved to the source plane, its brightest pixel 1.
        """
        self.require_maps()
        received = self.contract.preprocess(torch.from_numpy(images).to(self._device))
        found = {"image": received[:, 0], **self.network.maps(received)}  # type: ignore[operator]  # Informed has it
        return {name: value.float().cpu().numpy() for name, value in found.items()}

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
        return fits_lenses(self.contract.model)

    @property
    def fit_pixel_scale(self) -> float:
        """Pixel scale of the maps of a system that fits lenses, arcsec."""
        assert isinstance(self.contract.model, LensResidualConfig)
        return float(fitter(self.contract.model.population).fine.pixel_scale)

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


def shipped() -> list[str]:
    """Return the names of the models that come with the package."""
    if not SHIPPED.is_dir():
        return []
    return sorted(item.name for item in SHIPPED.iterdir() if (item / CONTRACT).is_file())


def is_model(path: Path) -> bool:
    """Return whether `locate` finds a bundle there."""
    try:
        locate(path)
    except InputError:
        return False
    return True


def locate(path: Path) -> Path:
    """Return the bundle folder that `path` is, holds, or is the name of.

    Raises:
        InputError: If there is none.
    """
    folders = [path, path / "bundle"]
    if str(path) == path.name:  # a bare name
        folders.append(Path(str(SHIPPED)) / path.name)
    for folder in folders:
        if (folder / CONTRACT).exists():
            return folder
    if not path.exists():
        known = ", ".join(shipped()) or "none"
        raise InputError(
            f"{path} does not exist; give a run folder, a bundle folder, or the name of a shipped model ({known})."
        )
    raise InputError(f"{path} holds no {CONTRACT}; give a run folder of a finished training, or a bundle folder.")


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
