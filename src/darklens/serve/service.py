"""A running server: its models, each with a batching thread, its reading processes, admission and metrics."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from darklens.bundle import Bundle, sha256_of_bundle
from darklens.data.prepare import Prepared, prepare
from darklens.data.readers import Image
from darklens.locate import locate
from darklens.serve import simulated_lens
from darklens.serve.batching import Batcher, Job
from darklens.serve.classifier import Classifier
from darklens.serve.limits import Admission, Settings
from darklens.serve.prometheus import Metrics
from darklens.serve.reader_processes import ReaderPool, ReadRequest
from darklens.serve.responses import ImageResult, ModelCard, ModelInput, RequestError, SearchResponse, no_space
from darklens.serve.search_processes import SearchJob, SearchPool
from darklens.serve.search_request import SearchQuery
from darklens.serve.simulated_lens import LensRequest

T = TypeVar("T")
_SLOW = "The request was not processed in time; try again, or send fewer files."
_SLOW_SEARCH = "The search did not end in time; cut out the lens, choose a simpler scene, or try again later."


@dataclass(frozen=True)
class Upload:
    """An uploaded file.

    Attributes:
        name: Name of the file, for messages.
        data: Contents of the file.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Model:
    """A model that the server offers."""

    card: ModelCard
    bundle: Bundle
    batcher: Batcher


class Service:
    """The models of the server and the resources that they share.

    Args:
        models: Bundles by name; the first is the default.
        digests: SHA-256 of each bundle by name, for its card.
        settings: Limits.
    """

    def __init__(self, models: Mapping[str, Bundle], digests: Mapping[str, str], settings: Settings) -> None:
        self.settings, self.admission = settings, Admission(settings)
        self.metrics = Metrics(lambda: float(self.admission.n_images))
        self._bundles = models
        self.cards = [_card(name, bundle, digests[name]) for name, bundle in models.items()]
        self.default = next(iter(models))
        self._models: dict[str, Model] = {}
        self._readers: ReaderPool | None = None
        self._searchers: SearchPool | None = None
        self._ready = threading.Event()
        self.failure: Exception | None = None

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return [card.name for card in self.cards]

    @property
    def is_ready(self) -> bool:
        """Whether the server accepts images: the models are loaded, the queue has room, and it is not stopping."""
        return self._ready.is_set() and self.admission.is_open and not self.admission.is_full

    def start(self) -> None:
        """Start threads and processes; the service is ready once each model has classified a first image."""
        settings, metrics = self.settings, self.metrics
        self._readers = ReaderPool(settings.readers, timeout=settings.read_timeout, on_kill=metrics.readers_killed.inc)
        self._searchers = SearchPool(1, timeout=settings.search_timeout)
        for card in self.cards:
            bundle = self._bundles[card.name]
            batcher = Batcher(
                Classifier(bundle),
                max_batch=settings.batch,
                on_batch=lambda n, name=card.name: metrics.batches.observe(float(n), name),  # type: ignore[misc]  # a lambda cannot annotate its default
                on_drop=lambda n: metrics.dropped.inc(amount=float(n)),
            )
            self._models[card.name] = Model(card, bundle, batcher)
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def stop(self) -> None:
        """Classify the queued images, then end threads and processes."""
        self.admission.is_open = False
        for model in self._models.values():
            model.batcher.close()
        if self._readers is not None:
            self._readers.close()
        if self._searchers is not None:
            self._searchers.close()

    def model(self, name: str | None) -> Model:
        """Return a model by name; None names the default model.

        Raises:
            RequestError: 422 if the name is unknown, 503 while the models are loading.
        """
        name = self.default if name is None else name
        if name not in self.names:
            raise RequestError(422, f"model: the models of this server are {', '.join(self.names)}.", field="model")
        if not self._ready.is_set():
            raise RequestError(503, "The models are still loading; try again in a moment.", reason="loading")
        return self._models[name]

    async def predict(
        self, model: Model, uploads: Sequence[Upload], *, maps: bool, pixel_scale: float | None, image: str | None
    ) -> list[ImageResult]:
        """Read and classify files; a file that cannot be read gives a result with status `error`.

        Raises:
            RequestError: 503 if the queue has no room for them, the disk is full, or the time limit has passed.
        """
        assert self._readers is not None
        deadline = time.monotonic() + self.settings.timeout
        with self.admission.images(len(uploads)):
            reading = []
            for upload in uploads:
                request = ReadRequest(
                    name=upload.name,
                    n_pixels=model.bundle.contract.n_pixels,
                    pixel_scale=model.bundle.contract.pixel_scale,
                    image_pixel_scale=pixel_scale,
                    image=image,
                    max_pixels=self.settings.max_pixels,
                )
                reading.append(asyncio.wrap_future(self._readers.read(upload.data, request)))
            work = [
                asyncio.ensure_future(self._classify_file(model, upload.name, future, maps, deadline))
                for upload, future in zip(uploads, reading, strict=True)
            ]
            try:
                return list(await _before(deadline, asyncio.gather(*work)))
            finally:
                for future in reading:
                    future.cancel()
                for task in work:
                    task.cancel()

    async def simulate(self, model: Model, lens: LensRequest) -> ImageResult:
        """Simulate a lens and classify it, with maps.

        Raises:
            RequestError: 503 if the queue has no room for it, or the time limit has passed.
        """
        deadline = time.monotonic() + self.settings.timeout
        pixel_scale = simulated_lens.population().field.pixel_scale
        with self.admission.images(1):
            pixels = await asyncio.to_thread(simulated_lens.simulate, lens)
            prepared = _prepared(model.bundle, pixels, pixel_scale)
            job = Job(
                "simulated lens",
                prepared.pixels,
                prepared.changes,
                maps=True,
                exposure=lens.exposure,
                deadline=deadline,
            )
            return await _before(deadline, self._classify(model, job))

    async def search(self, query: SearchQuery, uploads: Mapping[str, Upload]) -> SearchResponse:
        """Search a telescope image for a perturber, in a process of its own.

        Args:
            query: What to search for.
            uploads: Files by field (`search_request.FILES`).

        Raises:
            RequestError: 503 if other searches fill the queue, the disk is full, or the time limit has passed.
        """
        assert self._searchers is not None
        settings = self.settings
        deadline = time.monotonic() + settings.search_timeout
        files = {field: (upload.name, upload.data) for field, upload in uploads.items()}
        job = SearchJob(query, files, settings.max_search_pixels)
        with self.admission.search():
            self._searchers.submit(job)
            try:
                content = await _before(deadline, asyncio.wrap_future(job.result), _SLOW_SEARCH)
            except OSError as error:
                raise no_space(error) from None
            finally:
                self._searchers.abandon(job)
        response = SearchResponse.model_validate(content)
        detected = response.row is not None and response.row.detected
        self.metrics.searches.inc("error" if response.row is None else "detected" if detected else "none")
        return response

    async def _classify_file(
        self, model: Model, name: str, reading: "asyncio.Future[Prepared | str]", maps: bool, deadline: float
    ) -> ImageResult:
        try:
            prepared = await reading
        except OSError as error:
            raise no_space(error) from None
        if isinstance(prepared, str):
            self.metrics.bad_images.inc()
            return ImageResult(name=name, status="error", message=prepared)
        job = Job(name, prepared.pixels, prepared.changes, prepared.offset, prepared.mask, maps=maps, deadline=deadline)
        return await self._classify(model, job)

    async def _classify(self, model: Model, job: Job) -> ImageResult:
        model.batcher.submit(job)
        result = await asyncio.wrap_future(job.result)
        self.metrics.images.inc(model.card.name, str(result.predicted))
        return result

    def _warm_up(self) -> None:
        try:
            self._classify_first_images()
        except Exception as error:  # the server checks this and stops
            self.failure = error
        else:
            self._ready.set()

    def _classify_first_images(self) -> None:
        """Classify an image with each model; the first is slow, as fits compute templates and readers start."""
        pixels = simulated_lens.simulate(LensRequest())
        jobs = []
        for model in self._models.values():
            contract = model.bundle.contract
            pixel_scale = contract.pixel_scale * pixels.shape[0] / contract.n_pixels
            prepared = _prepared(model.bundle, pixels, pixel_scale)
            jobs.append(Job("", prepared.pixels, maps=True))
            model.batcher.submit(jobs[-1])
        for job in jobs:
            job.result.result()
        assert self._readers is not None
        self._readers.wait_until_ready()


def _prepared(bundle: Bundle, pixels: Float32[np.ndarray, "n n"], pixel_scale: float) -> Prepared:
    n_pixels, scale = bundle.contract.n_pixels, bundle.contract.pixel_scale
    return prepare(Image(pixels.astype(np.float64), pixel_scale), n_pixels=n_pixels, pixel_scale=scale)


async def _before(deadline: float, work: Awaitable[T], message: str = _SLOW) -> T:
    try:
        return await asyncio.wait_for(work, max(deadline - time.monotonic(), 0.0))
    except TimeoutError:
        raise RequestError(503, message) from None


def _card(name: str, bundle: Bundle, digest: str) -> ModelCard:
    contract = bundle.contract
    return ModelCard(
        name=name,
        recipe=contract.recipe,
        population=contract.data.get("population"),
        classes=contract.classes,
        parameters=contract.parameters,
        input=ModelInput(
            height=contract.n_pixels,
            width=contract.n_pixels,
            pixel_scale=contract.pixel_scale,
            normalisation="any linear scale of brightness",
        ),
        metrics=contract.validation or None,
        bundle_sha256=digest,
        licence=contract.licence,
        has_maps=bundle.has_maps,
        fits=bundle.fit_settings is not None,
    )


def load_models(paths: Sequence[Path], device: str = "cpu") -> tuple[dict[str, Bundle], dict[str, str]]:
    """Load bundles on a device; return them and their SHA-256 digests by name.

    The name is the last part of the path, followed by -2, -3, ... where several are equal.

    Raises:
        ConfigError: If there is no such device.
        InputError: If a bundle is missing or damaged, or is no classifier.
    """
    models: dict[str, Bundle] = {}
    digests: dict[str, str] = {}
    for path in paths:
        bundle = Bundle.load(path, device=device)
        bundle.require_classifier("serve")
        stem = path.resolve().name
        name, k = stem, 1
        while name in models:
            k += 1
            name = f"{stem}-{k}"
        models[name], digests[name] = bundle, sha256_of_bundle(locate(path))
    return models, digests
