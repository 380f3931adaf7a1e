"""The table of a bench.json: `python benchmarks/table.py [results/bench.json]`."""

import json
import sys
from pathlib import Path

HEAD = ("what", "against", "ratio", "ours", "commit")
CLASSES = ("no", "sphere", "vort")


def rows_of(bench):
    """Yield (what, against, ratio, ours, entry of the bench) of everything that was measured."""
    simulate, train, infer, gpu = (bench.get(key, {}) for key in ("simulate", "train", "infer", "gpu"))
    for name in CLASSES:
        for peer in ("lenstronomy", "caustics"):
            took = simulate.get(name, {}).get("ms_per_image", {}).get("darklens compiled")
            yield (
                f"simulate {name}",
                peer,
                simulate.get(name, {}).get(f"vs_{peer}"),
                _of(took, "ms an image"),
                "simulate",
            )
    for name, entry in train.items():
        took = _of(entry.get("ours_ms_per_image"), "ms an image")
        yield f"train {name}", "the study's way", entry.get("vs_study"), took, "train"
    for name, entry in infer.items():
        if isinstance(entry, dict):
            yield from _infer_rows(name, entry)
    fit, load = bench.get("fit", {}), bench.get("loader", {})
    yield "fit the smooth lens", "scipy", fit.get("vs_scipy"), _of(fit.get("images_per_s"), "images/s"), "fit"
    rate = _of(load.get("images_per_s"), "images/s")
    yield "load, shuffled", "fastest training", load.get("vs_fastest_training"), rate, "loader"
    stream = bench.get("stream", {})
    took = _of(stream.get("ms_per_image", {}).get("compiled"), "ms an image")
    yield "train on a stream, time", "from a store", stream.get("compiled_over_store"), took, "stream"
    memory = bench.get("memory", {})
    peak = _of(memory.get("simulate", {}).get("many", {}).get("peak_rss_mb"), "MB")
    yield "memory, simulate 100,000", "1,000", memory.get("simulate_100k_over_1k"), peak, "memory"
    peak = _of(memory.get("train_peak_rss_mb"), "MB with cached pages")
    yield "memory, load from 100,000", "1,000", memory.get("train_100k_over_1k"), peak, "memory"
    took = _of(bench.get("serve_lens", {}).get("p50_s"), "s")
    yield "make a lens on the page, median", "", None, took, "serve_lens"
    start = bench.get("startup", {})
    yield "import darklens", "", None, _of(start.get("import_s"), "s"), "startup"
    yield "darklens --help", "", None, _of(start.get("help_s"), "s"), "startup"
    for name, entry in gpu.items():
        if isinstance(entry, dict):
            for kind in ("train", "infer"):
                yield f"{kind} {name} on the GPU", "", None, _of(entry[f"{kind}_images_per_s"], "images/s"), "gpu"


def _infer_rows(name, entry):
    """Yield a row of each engine that a network was run by, or one of a system that has no choice."""
    rates = entry.get("images_per_s")
    if "wall_s" in entry:
        yield "first prediction of a new process", "", None, _of(entry["wall_s"], "s"), "infer"
        return
    if not isinstance(rates, dict):
        yield f"infer {name}", "", None, _of(rates, "images/s"), "infer"
        return
    for size in ("batch_64", "batch_1"):
        for engine, ratio in entry["ratios"][size].items():
            against = f"eager float32, {size.replace('_', ' of ')}"
            yield f"infer {name}, {engine}", against, ratio, _of(rates[engine], "images/s"), "infer"


def table(bench):
    """Return the table as text: what was not measured is left out."""
    commits = bench.get("commits", {})
    rows = [HEAD]
    for what, against, ratio, ours, entry in rows_of(bench):
        if ratio is not None or ours:
            shown = "" if ratio is None else f"{ratio:.2f}"
            rows.append((what, against, shown, ours, commits.get(entry, "")))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    gpu = bench.get("gpu", {}).get("device", "none")
    about = (
        f"{bench.get('hardware', '')}; GPU: {gpu}. Ratios are of speed, ours over theirs, unless they say otherwise."
    )
    return "\n".join([about, "", lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _of(value, unit):
    return "" if value is None else f"{value:.4g} {unit}"


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench.json")
    print(table(json.loads(path.read_text(encoding="utf-8"))))
