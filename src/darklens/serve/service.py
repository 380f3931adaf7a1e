"""What a running server has: models, each with its queue, processes that read, the gate and the counts."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from darklens.bundle import Bundle, sha256_of_bundle
from darklens.data.prepare import Prepared, prepare
from darklens.data.readers import Image
from darklens.locate import locate
from darklens.serve import lens
from darklens.serve.batching import Batcher, Job
from darklens.serve.classifier import Classifier
from darklens.serve.gate import Gate
from darklens.serve.prometheus import Metrics
from darklens.serve.readers import Readers, Wanted
from darklens.serve.refusal import Refusal
from darklens.serve.responses import ImageResult, Input, ModelCard
from darklens.serve.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Upload:
    """A file of a request."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Model:
    """A model that is served."""

    card: ModelCard
    bundle: Bundle
    batcher: Batcher


class Service:
    """The models and what they share.

    Args:
        models: Bundles by the names that requests call them; the first is the default.
        digests: Of each, for its card.
        settings: Limits.
    """

    def __init__(self, models: Mapping[str, Bundle], digests: Mapping[str, str], settings: Settings) -> None:
        self.settings, self.gate = settings, Gate(settings)
        self.metrics = Metrics(lambda: float(self.gate.images))
        self._bundles, self._digests = models, digests
        self.cards = [_card(name, bundle, digests[name]) for name, bundle in models.items()]
        self.default = next(iter(models))
        self._models: dict[str, Model] = {}
        self._readers: Readers | None = None
        self._ready = threading.Event()
        self.failure: Exception | None = None

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return [card.name for card in self.cards]

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered at once."""
        return self._ready.is_set() and self.gate.is_open and not self.gate.is_full

    def start(self) -> None:
        """Start threads and processes; the service is ready when each model has classified its first image."""
        settings, metrics = self.settings, self.metrics
        self._readers = Readers(settings.readers, timeout=settings.read_timeout, on_kill=metrics.killed.add)
        for card in self.cards:
            bundle = self._bundles[card.name]
            batcher = Batcher(
                Classifier(bundle),
                most=settings.batch,
                on_batch=lambda n, name=card.name: metrics.batches.see(float(n), name),  # type: ignore[misc]  # a default has no type
                on_drop=lambda n: metrics.dropped.add(amount=float(n)),
            )
            self._models[card.name] = Model(card, bundle, batcher)
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def stop(self) -> None:
        """Finish what is queued and end threads and processes."""
        self.gate.is_open = False
        for model in self._models.values():
            model.batcher.close()
        if self._readers is not None:
            self._readers.close()

    def model(self, name: str | None) -> Model:
        """Return a model by name, or the default one.

        Raises:
            Refusal: 422 if there is none of that name, 503 if the models are not ready.
        """
        chosen = self.default if name is None else name
        if chosen not in self.names:
            raise Refusal(422, f"model: this server has {', '.join(self.names)}.", field="model")
        if not self._ready.is_set():
            raise Refusal(503, "The models are not loaded yet; try again in a moment.", reason="loading")
        return self._models[chosen]

    async def predict(
        self, model: Model, uploads: Sequence[Upload], *, maps: bool, pixel_scale: float | None, image: str | None
    ) -> list[ImageResult]:
        """Read and classify files; a result each, also of bad ones.

        Raises:
            Refusal: 503 if there is no room for them, or time is up.
        """
        assert self._readers is not None
        until = time.monotonic() + self.settings.timeout
        with self.gate.queued(len(uploads)):
            reading = []
            for upload in uploads:
                wanted = Wanted(
                    name=upload.name,
                    n_pixels=model.bundle.contract.n_pixels,
                    pixel_scale=model.bundle.contract.pixel_scale,
                    own_scale=pixel_scale,
                    image=image,
                    max_pixels=self.settings.max_pixels,
                )
                reading.append(asyncio.wrap_future(self._readers.read(upload.data, wanted)))
            work = [
                asyncio.ensure_future(self._finish(model, upload.name, future, maps, until))
                for upload, future in zip(uploads, reading, strict=True)
            ]
            try:
                return list(await _within(asyncio.gather(*work), until))
            finally:
                for future in reading:
                    future.cancel()
                for task in work:
                    task.cancel()

    async def simulate(self, model: Model, wanted: lens.LensRequest) -> ImageResult:
        """Simulate a lens and classify it, with maps.

        Raises:
            Refusal: 503 if there is no room for it, or time is up.
        """
        until = time.monotonic() + self.settings.timeout
        contract, population = model.bundle.contract, lens.population()
        with self.gate.queued(1):
            pixels = await asyncio.to_thread(lens.simulate, wanted)
            ready = prepare(
                Image(pixels.astype(np.float64), population.field.pixel_scale),
                n_pixels=contract.n_pixels,
                pixel_scale=contract.pixel_scale,
            )
            job = Job(
                "simulated lens", ready.pixels, ready.changes, maps=True, exposure=wanted.exposure, deadline=until
            )
            return await _within(self._classify(model, job), until)

    async def _finish(
        self, model: Model, name: str, reading: "asyncio.Future[Prepared | str]", maps: bool, until: float
    ) -> ImageResult:
        read = await reading
        if isinstance(read, str):
            self.metrics.bad_images.add()
            return ImageResult(name=name, status="error", message=read)
        return await self._classify(model, Job(name, read.pixels, read.changes, maps=maps, deadline=until))

    async def _classify(self, model: Model, job: Job) -> ImageResult:
        model.batcher.submit(job)
        result = await asyncio.wrap_future(job.result)
        self.metrics.images.add(model.card.name, str(result.predicted))
        return result

    def _warm_up(self) -> None:
        try:
            self._try_once()
        except Exception as error:  # the server ends itself when it sees this
            self.failure = error
        else:
            self._ready.set()

    def _try_once(self) -> None:
        """Do once what is slow the first time: the banks of the fits, and the imports of the readers."""
        pixels = lens.simulate(lens.LensRequest())
        jobs = []
        for model in self._models.values():
            contract = model.bundle.contract
            ready = prepare(
                Image(pixels.astype(np.float64), contract.pixel_scale * pixels.shape[0] / contract.n_pixels),
                n_pixels=contract.n_pixels,
                pixel_scale=contract.pixel_scale,
            )
            jobs.append(Job("", ready.pixels, maps=True))
            model.batcher.submit(jobs[-1])
        for job in jobs:
            job.result.result()
        assert self._readers is not None
        self._readers.wait_until_ready()


async def _within(work: Awaitable[T], until: float) -> T:
    try:
        return await asyncio.wait_for(work, max(until - time.monotonic(), 0.0))
    except TimeoutError:
        raise Refusal(503, "The server did not get to it in time; try again, or send fewer files.") from None


def _card(name: str, bundle: Bundle, digest: str) -> ModelCard:
    contract = bundle.contract
    return ModelCard(
        name=name,
        recipe=contract.recipe,
        population=contract.data.get("population"),
        classes=contract.classes,
        parameters=contract.parameters,
        input=Input(
            height=contract.n_pixels,
            width=contract.n_pixels,
            pixel_scale=contract.pixel_scale,
            normalisation="any linear scale of brightness",
        ),
        metrics=contract.validation or None,
        bundle_sha256=digest,
        licence=contract.licence,
        has_maps=bundle.has_maps,
        fits=bundle.fits_lenses,
    )


def load(paths: Sequence[Path]) -> tuple[dict[str, Bundle], dict[str, str]]:
    """Load bundles, and return them and their digests by the last part of their path; further ones of a name get -2.

    Raises:
        InputError: If one is missing or damaged, or does not classify.
    """
    models: dict[str, Bundle] = {}
    digests: dict[str, str] = {}
    for path in paths:
        bundle = Bundle.load(path)
        bundle.require_classifier("serve")
        stem = path.resolve().name
        name, k = stem, 1
        while name in models:
            k += 1
            name = f"{stem}-{k}"
        models[name], digests[name] = bundle, sha256_of_bundle(locate(path))
    return models, digests
