"""One JSON file for the figures of all benchmarks, in the layout that results/bench.json keeps."""

from pathlib import Path

from darklens.files import read_json, write_json
from darklens.provenance import commit, hardware


def record(path, name, found):
    """Merge `found` into the entry `name`, and leave other benchmarks' figures as they are; without a path do nothing.

    `commit` is the last benchmark's; `commits` has each one's own.
    """
    if not path:
        return
    target, now = Path(path), commit()
    before = read_json(target) if target.exists() else {}
    entry = {**before.get(name, {}), **found}
    about = {"schema": 1, "hardware": hardware(), "commit": now, "commits": {**before.get("commits", {}), name: now}}
    write_json(target, {**before, **about, name: entry})
