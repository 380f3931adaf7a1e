"""Record the figures of a benchmark in results/bench.json."""

from pathlib import Path

from darklens.files import read_json, write_json
from darklens.provenance import commit, hardware


def record(path, name, figures):
    """Merge `figures` into the entry `name` of the JSON file and leave other entries as they are; no path, no record.

    `commit` is that of the last benchmark; `commits` has the commit of each entry.
    """
    if not path:
        return
    target, this_commit = Path(path), commit()
    before = read_json(target) if target.exists() else {}
    commits = {**before.get("commits", {}), name: this_commit}
    about = {"schema": 1, "hardware": hardware(), "commit": this_commit, "commits": commits}
    write_json(target, {**before, **about, name: {**before.get(name, {}), **figures}})
