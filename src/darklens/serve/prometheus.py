"""Counters and histograms in Prometheus' text format, which is short enough to write."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

Labels = tuple[str, ...]
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Counter:
    """A number by labels that only grows."""

    def __init__(self, name: str, about: str, labels: Labels = ()) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, *values: str, amount: float = 1.0) -> None:
        """Add to the number with these values of the labels."""
        with self._lock:
            self._values[values] = self._values.get(values, 0) + amount

    def total(self) -> float:
        """Return the sum over all labels."""
        with self._lock:
            return sum(self._values.values())

    def text(self) -> str:
        """Return the lines of this metric."""
        with self._lock:
            values = sorted(self._values.items())
        lines = [f"{self._name}{_labelled(self._labels, key)} {value:g}" for key, value in values]
        return _metric(self._name, self._about, "counter", lines)


class Gauge:
    """A number that is asked for when it is read."""

    def __init__(self, name: str, about: str, read: Callable[[], float]) -> None:
        self._name, self._about, self._read = name, about, read

    def text(self) -> str:
        """Return the lines of this metric."""
        return _metric(self._name, self._about, "gauge", [f"{self._name} {self._read():g}"])


class Histogram:
    """How often values up to each bound were seen, by labels."""

    def __init__(self, name: str, about: str, bounds: Sequence[float], labels: Labels = ()) -> None:
        self._name, self._about, self._bounds, self._labels = name, about, tuple(bounds), labels
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def see(self, value: float, *values: str) -> None:
        """Count a value."""
        with self._lock:
            counts = self._counts.setdefault(values, [0] * (len(self._bounds) + 1))
            counts[bisect_left(self._bounds, value)] += 1
            self._sums[values] = self._sums.get(values, 0.0) + value

    def text(self) -> str:
        """Return the lines of this metric."""
        with self._lock:
            seen = sorted((key, list(counts), self._sums[key]) for key, counts in self._counts.items())
        lines = []
        for key, counts, total in seen:
            below = 0
            for bound, count in zip([*(f"{b:g}" for b in self._bounds), "+Inf"], counts, strict=True):
                below += count
                lines.append(f"{self._name}_bucket{_labelled((*self._labels, 'le'), (*key, bound))} {below}")
            own = _labelled(self._labels, key)
            lines += [f"{self._name}_sum{own} {total:.6g}", f"{self._name}_count{own} {below}"]
        return _metric(self._name, self._about, "histogram", lines)


class Metrics:
    """All that the server counts.

    Args:
        queued: Returns how many images wait or are classified.
    """

    def __init__(self, queued: Callable[[], float]) -> None:
        self.accepted = Counter("darklens_requests_accepted_total", "Requests whose head has arrived.")
        self.requests = Counter("darklens_requests_total", "Requests answered.", ("route", "code"))
        self.seconds = Histogram("darklens_request_seconds", "From head to answer.", SECONDS, ("route",))
        self.gone = Counter("darklens_clients_gone_total", "Requests whose client left before the answer.")
        self.images = Counter("darklens_images_total", "Images by predicted class.", ("model", "predicted"))
        self.bad_images = Counter("darklens_bad_images_total", "Images that could not be read.")
        self.dropped = Counter("darklens_dropped_images_total", "Images nobody waited for any more.")
        self.killed = Counter("darklens_readers_killed_total", "Reading processes that were ended.")
        self.batches = Histogram("darklens_batch_images", "Images classified together.", SIZES, ("model",))
        self.queued = Gauge("darklens_queued_images", "Images that wait or are classified.", queued)

    def text(self) -> str:
        """Return all metrics as Prometheus reads them."""
        return "".join(metric.text() for metric in vars(self).values())


def _metric(name: str, about: str, kind: str, lines: Sequence[str]) -> str:
    return "\n".join([f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines]) + "\n"


def _labelled(names: Labels, values: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
