"""A loaded bundle: network inputs, logits, calibrated probabilities, fitted parameters and maps."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from darklens.bundle import storage
from darklens.bundle.contract import Contract
from darklens.bundle.hub_card import summary_line, write_card
from darklens.bundle.outputs import Classification, Images, InferenceBackend, Output, SmoothFit
from darklens.calibration import Calibration, MahalanobisStats, widened
from darklens.data.arrays import float32_tensor
from darklens.data.contrast import contrast_problem
from darklens.data.ring_statistics import ring_statistics
from darklens.data.store import Store
from darklens.devices import full_float32, require_device
from darklens.errors import InputError
from darklens.fit.cache import FitSettings, cached_fits, fit_settings_of
from darklens.fit.checks import Hypothesis, hypothesis_of, suspicions
from darklens.fit.checks import doubts as doubts_of_fits
from darklens.fit.evidence import evidence_maps
from darklens.fit.features import MAP_NAMES, FitFeatures
from darklens.fit.fitter import fitter_of
from darklens.fit.macro import fit_macro
from darklens.fit.noise import MASKED_EXPOSURE
from darklens.fit.summary import findings
from darklens.locate import locate, shipped
from darklens.models.base import Inputs, NetworkOutput, forward_features, ood_features
from darklens.models.zoo import has_lens_step, requires_fitting

T = TypeVar("T")
BATCH_SIZE = 64
UNFAMILIAR = "the image is out of distribution (ood)"
MICRO_BATCH = 16  # images per forward pass on a CPU, so that activations stay in its cache


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
        self._device = require_device(device)
        self.network = network.eval().to(self._device)
        self.ood_reference = ood_reference

    @classmethod
    def load(cls, path: Path | str, *, device: torch.device | str = "cpu") -> "Bundle":
        """Load a bundle folder, the bundle inside a run folder, or one of the Hugging Face hub.

        Args:
            path: A folder, the name of a shipped model, or a repository `owner/name` or `owner/name@revision`.
            device: Device of the network and of fits, such as "cuda".

        Raises:
            ConfigError: If there is no such device.
            InputError: If it is missing, damaged, or of an unsupported version.
        """
        contract, network, ood_reference = storage.read(locate(Path(path)))
        return cls(contract, network, ood_reference=ood_reference, device=device)

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write a bundle folder; an interrupted write leaves no loadable bundle.

        Args:
            folder: Folder to write.
            half: Write large tensors with 16 bits. Compare the probabilities before you use such a bundle.
        """
        storage.write(folder, self.contract, self.network, self.ood_reference, half=half)

    def save_pretrained(self, folder: Path | str, *, name: str | None = None) -> None:
        """Write a folder for the Hugging Face hub: the bundle and README.md.

        Args:
            folder: Folder to write; may be a clone of an empty repository.
            name: Repository `owner/name` in the usage example; by default the name of the folder.
        """
        self.save(Path(folder))
        write_card(Path(folder), self.contract, name)

    @classmethod
    def from_pretrained(
        cls, name_or_path: Path | str, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "Bundle":
        """Load a bundle from a folder or a repository, as `load`, with the revision as an argument."""
        return cls.load(f"{name_or_path}@{revision}" if revision else name_or_path, device=device)

    @cached_property
    def fallback(self) -> "Bundle | None":
        """The model for images that this one doubts, loaded at first use; None if there is none.

        Raises:
            InputError: If it takes other images or has other classes.
        """
        return self._companion(self.contract.fallback, "be the fallback of")

    @cached_property
    def checker(self) -> "Bundle | None":
        """The model whose fits check the classes of a network that takes images, loaded at first use; None without.

        Raises:
            InputError: If it does not fit lenses, takes other images or has other classes.
        """
        checker = self._companion(self.contract.checked_by, "check the classes of")
        if checker is not None and checker.fit_settings is None:
            raise InputError(f"{self.contract.checked_by} cannot check {self.contract.recipe}: it does not fit lenses.")
        return checker

    def _companion(self, name: str, role: str) -> "Bundle | None":
        """Return a shipped model for the same images and classes; None without a name."""
        if not name:
            return None
        companion = Bundle.load(name, device=self._device)
        same = ("classes", "n_pixels", "pixel_scale", "task")
        if any(getattr(self.contract, key) != getattr(companion.contract, key) for key in same):
            raise InputError(
                f"{name} cannot {role} {self.contract.recipe}: it has other classes, or takes images of another size "
                "or pixel scale."
            )
        return companion

    def with_companions(self, *, fallback: str | None = None, checked_by: str | None = None) -> "Bundle":
        """Return this model with another fallback or checker.

        Args:
            fallback: A shipped model, "" for none; by default that of this model.
            checked_by: As `fallback`, for `checker`.

        Raises:
            InputError: If one is not shipped, takes other images, or has other classes; or if the checker does not fit
                lenses, or this model does.
        """
        names = {key: name for key, name in (("fallback", fallback), ("checked_by", checked_by)) if name is not None}
        for name in filter(None, names.values()):
            if name not in shipped():
                raise InputError(f"{name} is not one of the shipped models: {', '.join(shipped())}.")
        if checked_by and self.fit_settings is not None:
            raise InputError(f"{self.contract.recipe} fits lenses and checks its fits itself.")
        contract = self.contract.model_copy(update=names)
        bundle = Bundle(contract, self.network, ood_reference=self.ood_reference, device=self._device)
        _ = bundle.fallback, bundle.checker  # raises here and not at the first image
        return bundle

    @torch.inference_mode()
    def run(self, images: Images) -> tuple[Float[Tensor, "b 1 m m"], Tensor]:
        """Return the pre-processed images that a network without fits receives, and its output."""
        received = self.contract.preprocess(self._on_device(images))
        return received, self.network(received.contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def inputs_of(self, images: Images, *, exposure: Images | None = None) -> Inputs:
        """Return the inputs of the network: pre-processed images, or features of fits.

        Args:
            images: Images in any linear scale.
            exposure: Relative exposure of each pixel, if images are counts divided by exposure; used by fits.

        Raises:
            ValueError: If images or exposure do not have the image size of the model.
        """
        raw = self._on_device(images)
        if self.fit_settings is not None:
            depth = None if exposure is None else self._on_device(exposure)[:, 0]
            return self.fit_settings.extract_features(raw[:, 0], exposure=depth)
        return self.contract.preprocess(raw).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, inputs: Inputs) -> NetworkOutput:
        """Return the logits, and the features before the last layer, for inputs from `inputs_of`."""
        if isinstance(inputs, Tensor) and inputs.device.type == "cpu" and len(inputs) > MICRO_BATCH:
            parts = [self.forward(part) for part in torch.split(inputs, MICRO_BATCH)]
            return NetworkOutput(*map(torch.cat, zip(*parts, strict=True)))
        with full_float32():
            return forward_features(self.network, inputs)

    @torch.inference_mode()
    def output(self, inputs: Inputs, network_output: NetworkOutput | None = None) -> Output:
        """Return logits and OOD features for inputs from `inputs_of`; they do not depend on the batch.

        Args:
            inputs: Inputs of the network.
            network_output: Output of the network, if computed already.
        """
        logits, last = network_output or self.forward(inputs)
        image = inputs.maps[:, :1] if isinstance(inputs, FitFeatures) else inputs
        features = [last.double(), ring_statistics(image), ood_features(self.network, inputs).double()]
        return Output(logits.double().cpu().numpy(), torch.cat(features, 1).cpu().numpy())

    def calibrated(self, logits: Float[np.ndarray, "b classes"]) -> Float[np.ndarray, "b classes"]:
        """Return calibrated probabilities for logits; the temperature is applied only here."""
        return (self.contract.calibration or Calibration()).probabilities(logits)

    def probabilities(self, images: Images) -> Float[np.ndarray, "b classes"]:
        """Return calibrated class probabilities of images; they do not depend on the batch."""
        self._require_contrast(images)
        return self.calibrated(self.output(self.inputs_of(images)).logits)

    def classify(
        self,
        images: Images,
        backend: InferenceBackend | None = None,
        *,
        exposure: Images | None = None,
        mask: Bool[np.ndarray, "b 1 n n"] | None = None,
        with_maps: bool = False,
        doubts: Sequence[tuple[str, ...]] | None = None,
    ) -> Classification:
        """Classify images with this model alone; `predict` and `serve` call `bundle.fallback.classify`.

        Args:
            images: Images in any linear scale.
            backend: Inference backend; by default the bundle itself.
            exposure: As for `inputs_of`; used by fits, also by those of `checker`.
            mask: Pixels without data; they have no weight in fits. Networks on images see their values, which
                `darklens.data.prepare.prepare` fills from their neighbours.
            with_maps: Whether to return the maps of `Bundle.maps`, if the system has them.
            doubts: Further reasons not to trust the class of each image.

        Raises:
            ValueError: If images do not have the image size of the model, are not finite, or have no contrast at their
                centre.
        """
        self._require_contrast(images)
        runner, exposure = backend or self, _masked(exposure, mask)
        inputs = runner.inputs_of(images, exposure=exposure)
        logits, features = self.output(inputs, runner.forward(inputs))
        probabilities = self.calibrated(logits)
        fits = self.checker.inputs_of(images, exposure=exposure) if self.checker else inputs
        of_fit = self._checked(doubts_of_fits, fits, probabilities)
        further = doubts or [()] * len(of_fit)
        together = zip(further, of_fit, self._disagreements(fits, probabilities), strict=True)
        all_doubts = self._with_unfamiliar([(*a, *b, *c) for a, b, c in together], features)
        probabilities = widened(probabilities, [bool(reasons) for reasons in all_doubts])
        columns = {}
        if isinstance(fits, FitFeatures):
            columns = findings(fits) | {"fit": ["; ".join(reasons) or "ok" for reasons in of_fit]}
        if isinstance(inputs, FitFeatures):
            maps = dict(zip(MAP_NAMES, inputs.maps.cpu().numpy().swapaxes(0, 1), strict=True))
        else:
            maps = self.maps(images) if with_maps and self.has_maps else {}
        return Classification(probabilities, columns, maps, features, inputs, all_doubts)

    def suspicions_of(self, classification: Classification) -> Sequence[tuple[str, ...]]:
        """Return for each image the reasons to fit more parameters; none for systems that take images."""
        return self._checked(suspicions, classification.inputs, classification.probabilities)

    def _checked(
        self,
        check: Callable[[FitFeatures, Sequence[Hypothesis]], Sequence[tuple[str, ...]]],
        inputs: Inputs,
        probabilities: Float[np.ndarray, "b classes"],
    ) -> Sequence[tuple[str, ...]]:
        """Return what a check finds in the fits of the most probable classes; nothing without fits."""
        if self.check_settings is None or not isinstance(inputs, FitFeatures):
            return [()] * len(probabilities)
        population, classes = self.check_settings.population, self.contract.classes
        return check(inputs, [hypothesis_of(population, classes[k]) for k in probabilities.argmax(1)])

    def _disagreements(self, fits: Inputs, probabilities: Float[np.ndarray, "b classes"]) -> Sequence[tuple[str, ...]]:
        """Return for each image the class of the checker if it is another one."""
        if self.checker is None:
            return [()] * len(probabilities)
        other, classes = self.checker.output(fits).logits.argmax(1), self.contract.classes
        name = self.contract.checked_by
        return [
            () if a == b else (f"{name}, which fits the lens, classifies the image as {classes[b]}",)
            for a, b in zip(probabilities.argmax(1), other, strict=True)
        ]

    def _with_unfamiliar(
        self, doubts: list[tuple[str, ...]], features: Float[np.ndarray, "b f"]
    ) -> list[tuple[str, ...]]:
        """Return doubts, with one more for images whose score exceeds the 99 % quantile of held-out images."""
        calibration = self.contract.calibration
        if calibration is None or calibration.ood is None or self.ood_reference is None:
            return doubts
        is_far = self.ood_reference.scores(features) > calibration.ood.p99
        return [(*reasons, *([UNFAMILIAR] * bool(far))) for reasons, far in zip(doubts, is_far, strict=True)]

    def outputs_of(self, store: Store, *, workers: int = 1, advance: Callable[[int], None] = lambda _: None) -> Output:
        """Return logits and OOD features of all images of a store.

        Args:
            store: The images. Fits are cached in the folder of the store.
            workers: Number of processes for fits on the CPU.
            advance: Called with the number of images just finished.
        """
        settings = self.fit_settings
        if settings is None:
            inputs = batched(len(store), lambda rows: self.inputs_of(store.images(rows)), advance)
        else:
            population, centred = settings
            fits = cached_fits(
                store, population, centred=centred, workers=workers, device=self._device, advance=advance
            )
            inputs = batched(len(store), lambda rows: fits.features(rows).to(self._device))
        blocks = [self.output(batch) for batch in inputs]
        return Output(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def doubts_of(self, store: Store, output: Output) -> list[tuple[str, ...]]:
        """Return the reasons not to trust the class of each image of a store, as `Classification.doubts`.

        Args:
            store: The images, whose fits are cached.
            output: Result of `outputs_of`.
        """
        probabilities = self.calibrated(output.logits)
        of_fit: list[tuple[str, ...]] = [()] * len(probabilities)
        if self.fit_settings is not None:
            fits = cached_fits(store, self.fit_settings.population, centred=self.fit_settings.centred)
            blocks = batched(
                len(store),
                lambda rows: self._checked(doubts_of_fits, fits.features(rows), probabilities[rows.start : rows.stop]),
            )
            of_fit = [reasons for block in blocks for reasons in block]
        return self._with_unfamiliar(of_fit, output.ood_features)

    @torch.inference_mode()
    def maps(self, images: Images) -> dict[str, Float[np.ndarray, "b m m"]]:
        """Return the maps of a system with a lens step: `image` as received, `k`, `alpha_x`, `alpha_y`, `source`.

        k and alpha are in arcsec; `source` is the brightness in the source plane, scaled to a maximum of 1.

        Raises:
            InputError: If the system has no lens step. Maps of fits are in `Classification.maps`.
        """
        if not has_lens_step(self.contract.model):
            raise InputError(f"{self.contract.recipe} has no map k(x, y); see Bundle.classify for maps of fits.")
        received = self.contract.preprocess(self._on_device(images))
        maps = {"image": received[:, 0], **self.network.maps(received)}  # type: ignore[operator]  # Informed has it
        return {name: value.float().cpu().numpy() for name, value in maps.items()}

    def smooth_fit(
        self, images: Images, *, exposure: Images | None = None, mask: Bool[np.ndarray, "b 1 n n"] | None = None
    ) -> SmoothFit:
        """Return the fit of the smooth lens on all pixels; takes as long as `classify`, whose arguments it has.

        Raises:
            InputError: If the system does not fit.
        """
        if self.fit_settings is None:
            raise InputError(f"{self.contract.recipe} does not fit lenses.")
        population, centred = self.fit_settings
        plane, exposure = self._on_device(images)[:, 0], _masked(exposure, mask)
        depth = None if exposure is None else self._on_device(exposure)[:, 0]
        macro = fit_macro(plane, population, exposure=depth, centred=centred)
        return SmoothFit(macro, evidence_maps(plane, macro, population, exposure=depth))

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self._device

    @property
    def card(self) -> str:
        """A line on the training data, the validation metrics and the inputs."""
        return summary_line(self.contract)

    @property
    def has_maps(self) -> bool:
        """Whether the system has maps: k(x, y) and deflection, or residuals and evidence of fits."""
        return has_lens_step(self.contract.model) or self.fit_settings is not None

    @property
    def fit_settings(self) -> FitSettings | None:
        """Settings of the fits whose `FitFeatures` the network takes; None if it takes images."""
        return fit_settings_of(self.contract.model)

    @property
    def check_settings(self) -> FitSettings | None:
        """Settings of the fits that check the classes, of the network or its `checker`; None without fits."""
        return self.fit_settings if self.checker is None else self.checker.fit_settings

    @property
    def requires_fitting(self) -> bool:
        """Whether an iterative fit runs for each image, before or in the network, which ONNX cannot express."""
        return requires_fitting(self.contract.model)

    @property
    def fits_lenses(self) -> bool:
        """Whether `classify` fits a lens to each image, for the network or for `checker`."""
        return self.requires_fitting or bool(self.contract.checked_by)

    @property
    def map_pixel_scale(self) -> float:
        """Pixel scale of `Classification.maps`, arcsec."""
        if self.fit_settings is None:
            return self.contract.pixel_scale * self.contract.preprocess.bin
        population, centred = self.fit_settings
        return float(fitter_of(population, centred=centred).fine.pixel_scale)

    def require_maps(self) -> None:
        """Raise `InputError` unless the system has maps of an image."""
        if not self.has_maps:
            raise InputError(
                f"{self.contract.recipe} has no lens step, so there are no maps; lens_residual and the sis_autoencoder "
                "systems have them."
            )

    def require_classifier(self, purpose: str) -> None:
        """Raise `InputError` unless the bundle classifies."""
        if self.contract.task != "classify":
            raise InputError(
                f"{self.contract.recipe} reconstructs images, it does not classify; {purpose} needs a classifier."
            )

    def _require_contrast(self, images: Images) -> None:
        """Raise ValueError if an image is not finite, or has no contrast at its centre."""
        for i, image in enumerate(self._of_model_size(images)[:, 0].cpu().numpy()):
            problem = "" if np.isfinite(image).all() else "it has NaN or infinite pixels"
            problem = problem or contrast_problem(image, self.contract.pixel_scale)
            if problem:
                raise ValueError(f"image {i} cannot be classified: {problem}")

    def _on_device(self, images: Images) -> Float[Tensor, "b 1 n n"]:
        """Return images as float32 on the bundle's device; raises as `_of_model_size`."""
        return self._of_model_size(images).to(self._device)

    def _of_model_size(self, images: Images) -> Float[Tensor, "b 1 n n"]:
        """Return images as float32.

        Raises:
            ValueError: If they do not have the image size of the model, or are not real numbers.
        """
        side = self.contract.n_pixels
        if tuple(np.shape(images))[1:] != (1, side, side):
            raise ValueError(
                f"this model takes images of shape (b, 1, {side}, {side}), got {tuple(np.shape(images))}; "
                "add the channel axis, or resample images with darklens.data.prepare"
            )
        return float32_tensor(images)


def _masked(exposure: Images | None, mask: Bool[np.ndarray, "b 1 n n"] | None) -> Images | None:
    """Return the exposure in which masked pixels have no weight."""
    if mask is None:
        return exposure
    depth = np.ones(mask.shape, dtype=np.float32) if exposure is None else np.asarray(exposure)
    return np.where(mask, MASKED_EXPOSURE, depth).astype(np.float32)


def batched(n: int, read: Callable[[range], T], advance: Callable[[int], None] = lambda _: None) -> Iterator[T]:
    """Yield `read(indices)` for blocks of indices below n; `advance` is called after each block is used."""
    for start in range(0, n, BATCH_SIZE):
        stop = min(start + BATCH_SIZE, n)
        yield read(range(start, stop))
        advance(stop - start)
