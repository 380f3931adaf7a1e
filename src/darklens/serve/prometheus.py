"""Metrics in the text format of Prometheus, which is simple enough to write without a library."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

Labels = tuple[str, ...]
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Counter:
    """A number that only grows, one for each combination of label values."""

    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def inc(self, *values: str, amount: float = 1.0) -> None:
        """Increase the number with these label values."""
        with self._lock:
            self._values[values] = self._values.get(values, 0) + amount

    def total(self) -> float:
        """Return the sum over all label values."""
        with self._lock:
            return sum(self._values.values())

    def text(self) -> str:
        """Return the lines of this metric."""
        with self._lock:
            values = sorted(self._values.items())
        lines = [f"{self._name}{_labelled(self._labels, key)} {value:g}" for key, value in values]
        return _metric(self._name, self._help, "counter", lines)


class Gauge:
    """A number that a function returns."""

    def __init__(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        self._name, self._help, self._read = name, help_text, read

    def text(self) -> str:
        """Return the lines of this metric."""
        return _metric(self._name, self._help, "gauge", [f"{self._name} {self._read():g}"])


class Histogram:
    """Cumulative counts of observations in buckets, for each combination of label values."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], labels: Labels = ()) -> None:
        self._name, self._help, self._bounds, self._labels = name, help_text, tuple(bounds), labels
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Count an observation."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
            counts[bisect_left(self._bounds, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def text(self) -> str:
        """Return the lines of this metric."""
        with self._lock:
            snapshot = sorted((key, list(counts), self._sums[key]) for key, counts in self._counts.items())
        lines = []
        for key, counts, total in snapshot:
            cumulative = 0
            for bound, count in zip([*(f"{b:g}" for b in self._bounds), "+Inf"], counts, strict=True):
                cumulative += count
                lines.append(f"{self._name}_bucket{_labelled((*self._labels, 'le'), (*key, bound))} {cumulative}")
            labels = _labelled(self._labels, key)
            lines += [f"{self._name}_sum{labels} {total:.6g}", f"{self._name}_count{labels} {cumulative}"]
        return _metric(self._name, self._help, "histogram", lines)


class Metrics:
    """All metrics of the server.

    Args:
        queued: Returns the number of images that wait or are being classified.
    """

    def __init__(self, queued: Callable[[], float]) -> None:
        self.accepted = Counter("darklens_requests_accepted_total", "Requests whose headers have arrived.")
        self.requests = Counter("darklens_requests_total", "Requests answered.", ("route", "code"))
        self.seconds = Histogram(
            "darklens_request_seconds", "Time from the headers of a request to its response.", SECONDS, ("route",)
        )
        self.disconnects = Counter(
            "darklens_clients_gone_total", "Requests whose client disconnected before the response."
        )
        self.images = Counter("darklens_images_total", "Images by predicted class.", ("model", "predicted"))
        self.bad_images = Counter("darklens_bad_images_total", "Images that could not be read.")
        self.searches = Counter("darklens_searches_total", "Searches by outcome.", ("outcome",))
        self.dropped = Counter(
            "darklens_dropped_images_total", "Images dropped because no client was waiting for them."
        )
        self.readers_killed = Counter(
            "darklens_readers_killed_total", "Reading processes killed for being too slow, or crashed."
        )
        self.batches = Histogram("darklens_batch_images", "Images per batch.", SIZES, ("model",))
        self.queued = Gauge("darklens_queued_images", "Images waiting or being classified.", queued)

    def text(self) -> str:
        """Return all metrics in the text format of Prometheus."""
        return "".join(metric.text() for metric in vars(self).values())


def _metric(name: str, help_text: str, kind: str, lines: Sequence[str]) -> str:
    return "\n".join([f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *lines]) + "\n"


def _labelled(names: Labels, values: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
