"""One thread a model that classifies what has come in since it last looked, together."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
from jaxtyping import Float32

from darklens.serve.responses import ImageResult


@dataclass(frozen=True, eq=False)
class Job:
    """An image to classify.

    Attributes:
        name: Of the image.
        pixels: As the model takes them.
        changes: What was done to make them so.
        maps: Whether maps are wanted.
        exposure: Relative to the population's.
        deadline: Of `time.monotonic`, after which nobody waits for the result.
        result: Of the classification.
    """

    name: str
    pixels: Float32[np.ndarray, "n n"]
    changes: tuple[str, ...] = ()
    maps: bool = False
    exposure: float = 1.0
    deadline: float = float("inf")
    result: "Future[ImageResult]" = field(default_factory=Future)


class Batcher:
    """Classifies jobs in batches, in the order in which they came.

    Those that nobody waits for any more are dropped before the work on them begins.

    Args:
        classify: Classifies jobs, one result each.
        most: Jobs in a batch.
        on_batch: Called with the number of jobs before each batch.
        on_drop: Called with the number of jobs that were dropped.
    """

    def __init__(
        self,
        classify: Callable[[Sequence[Job]], list[ImageResult]],
        *,
        most: int,
        on_batch: Callable[[int], None] = lambda _: None,
        on_drop: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._classify, self._most, self._on_batch, self._on_drop = classify, most, on_batch, on_drop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="classify", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its `result` says when it is done. Cancel that to drop the job."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finish what is queued, and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            jobs = self._next()
            wanted = [job for job in jobs if job is not None]
            live = [job for job in wanted if job.result.set_running_or_notify_cancel() and not _is_late(job)]
            if len(live) < len(wanted):
                self._on_drop(len(wanted) - len(live))
            if live:
                self._run_batch(live)
            if len(wanted) < len(jobs):
                return

    def _next(self) -> list[Job | None]:
        """Wait for a job, and return it with those that came meanwhile; None ends the thread."""
        jobs = [self._jobs.get()]
        while jobs[-1] is not None and len(jobs) < self._most:
            try:
                jobs.append(self._jobs.get_nowait())
            except Empty:
                break
        return jobs

    def _run_batch(self, jobs: list[Job]) -> None:
        self._on_batch(len(jobs))
        try:
            results = self._classify(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].result.set_exception(error)
                return
            for job in jobs:  # one image must not spoil those it happened to come with
                self._run_batch([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.result.set_result(result)


def _is_late(job: Job) -> bool:
    if time.monotonic() < job.deadline:
        return False
    job.result.set_exception(TimeoutError())
    return True
