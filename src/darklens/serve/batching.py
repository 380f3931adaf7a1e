"""Micro-batching: one thread per model classifies all images that have arrived since its last batch."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
from jaxtyping import Bool, Float32

from darklens.serve.responses import ImageResult


@dataclass(frozen=True, eq=False)
class Job:
    """An image to classify.

    Attributes:
        name: Name of the image.
        pixels: The image on the model's pixel grid.
        changes: Changes made to put it on that grid, in words.
        offset: Position (x, y) of its centre relative to the centre of the original image, arcsec.
        mask: Pixels without data; None if there are none.
        maps: Whether to compute maps.
        exposure: Exposure relative to that of the population.
        deadline: Time of `time.monotonic` after which no client waits for the result.
        result: Will hold the classification.
    """

    name: str
    pixels: Float32[np.ndarray, "n n"]
    changes: tuple[str, ...] = ()
    offset: tuple[float, float] = (0.0, 0.0)
    mask: Bool[np.ndarray, "n n"] | None = None
    maps: bool = False
    exposure: float = 1.0
    deadline: float = float("inf")
    result: "Future[ImageResult]" = field(default_factory=Future)


class Batcher:
    """Classifies jobs in batches, in order of arrival.

    Jobs that no client waits for any more are dropped before they are classified.

    Args:
        classify: Classifies jobs; returns one result for each.
        max_batch: Largest number of jobs in a batch.
        on_batch: Called with the number of jobs before each batch.
        on_drop: Called with the number of dropped jobs.
    """

    def __init__(
        self,
        classify: Callable[[Sequence[Job]], list[ImageResult]],
        *,
        max_batch: int,
        on_batch: Callable[[int], None] = lambda _: None,
        on_drop: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._classify, self._max_batch, self._on_batch, self._on_drop = classify, max_batch, on_batch, on_drop
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="classify", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Cancel its `result` to drop it."""
        self._queue.put(job)

    def close(self) -> None:
        """Classify the queued jobs, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            items = self._next()
            jobs = [item for item in items if item is not None]
            pending = [job for job in jobs if job.result.set_running_or_notify_cancel() and not _is_late(job)]
            if len(pending) < len(jobs):
                self._on_drop(len(jobs) - len(pending))
            if pending:
                self._run_batch(pending)
            if len(jobs) < len(items):
                return

    def _next(self) -> list[Job | None]:
        """Wait for a job; return it and all others in the queue, up to a full batch. None ends the thread."""
        items = [self._queue.get()]
        while items[-1] is not None and len(items) < self._max_batch:
            try:
                items.append(self._queue.get_nowait())
            except Empty:
                break
        return items

    def _run_batch(self, jobs: list[Job]) -> None:
        self._on_batch(len(jobs))
        try:
            results = self._classify(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].result.set_exception(error)
                return
            for job in jobs:  # an image that fails must not fail the others of its batch
                self._run_batch([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.result.set_result(result)


def _is_late(job: Job) -> bool:
    if time.monotonic() < job.deadline:
        return False
    job.result.set_exception(TimeoutError())
    return True
