"""One JSON file for the figures of all benchmarks, each under its own name with the hardware and commit it ran on."""

from pathlib import Path

from darklens.files import read_json, write_json
from darklens.provenance import commit, hardware


def record(path, name, found):
    """Put `found` under `name`, and leave the other benchmarks' figures as they are; without a path, do nothing."""
    if path:
        target = Path(path)
        before = read_json(target) if target.exists() else {}
        write_json(target, {**before, name: {**found, "hardware": hardware(), "commit": commit()}})
