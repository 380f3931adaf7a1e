"""Run all benchmarks one after the other: `make bench`, or `python benchmarks/run.py [--quick] [--only NAME ...]`.

Each script takes turns with the software it is compared with and reports medians of ratios. The figures go to one JSON
file, results/bench.json, from which the table is printed; the output of each script goes to a log beside it. The exit
code is 1 if a script failed. `--quick` runs every script at a tiny size, to check that it works, and writes to the
folder for temporary files; its figures mean little. `--table` prints the table of the JSON file and measures nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRATCH = Path(tempfile.gettempdir()) / "darklens-bench"
RESULTS = HERE.parent / "results"
QUICK_INFER = ["--rounds", "1", "--images", "4", "--systems", "resnet_simple", "--agreement", "4"]
QUICK_INFER += ["--skip", "lens_residual", "archive", "cold"]
QUICK_FIT = ["--images", "9", "--scipy-images", "1", "--rounds", "1", "--backend", "eager", "--out", str(SCRATCH)]
QUICK_MEMORY = ["--few", "60", "--many", "600", "--pixels", "48", "--skip", "fits"]
QUICK_SCENE = ["--eager", "--images", "1", "--peer-images", "1", "--pixels", "40", "--swarm", "0.02"]
# Name: script, its arguments, its arguments with --quick.
SCRIPTS = {
    "startup": ("bench_startup.py", [], ["--rounds", "3"]),
    "train": ("bench_train.py", [], ["--rounds", "1", "--steps", "1", "--batch", "8", "--networks", "resnet_simple"]),
    "infer": ("bench_infer.py", [], QUICK_INFER),
    "simulate": ("bench_simulate.py", ["--images", "240"], ["--images", "6", "--rounds", "1"]),
    "stream": ("bench_stream.py", [], ["--images", "96", "--rounds", "1"]),
    "fit": ("bench_fit.py", ["--rounds", "5"], QUICK_FIT),
    "versions": ("bench_versions.py", ["bcef962"], ["HEAD", "--images", "16", "--rounds", "1", "--agreement", "16"]),
    "scene_fit": ("bench_scene_fit.py", [], QUICK_SCENE),
    "loader": ("bench_loader.py", [], ["--few", "1024", "--many", "2048", "--rounds", "1"]),
    "serve_lens": ("bench_serve_lens.py", [], ["--requests", "3"]),
    "memory": ("bench_memory.py", [], QUICK_MEMORY),
    "gpu": ("bench_gpu.py", [], ["--quick"]),
}
HEAD = ("what", "against", "ratio", "ours", "commit")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--json", type=Path, help="default: results/bench.json")
    options = parser.parse_args()
    target = options.json or (SCRATCH if options.quick else RESULTS) / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    names = [] if options.table else [name for name in options.only if name != "gpu" or has_cuda()]
    failed = [name for name in names if not succeeds(name, target, quick=options.quick)]
    if target.exists():
        print("\n" + table(json.loads(target.read_text(encoding="utf-8"))))
        print(f"\nFigures: {target}")
    if failed:
        sys.exit(f"These benchmarks failed: {', '.join(failed)}.")


def succeeds(name, target, *, quick):
    """Run one script; keep its log if it fails."""
    script, full_size, quick_size = SCRIPTS[name]
    command = [sys.executable, str(HERE / script), "--json", str(target), *(quick_size if quick else full_size)]
    log, started = target.with_name(f"{target.stem}-{name}.log"), time.perf_counter()
    print(f"{name} ... ", end="", flush=True)
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{time.perf_counter() - started:.0f} s" + (f", failed: see {log}" if code else ""), flush=True)
    if code == 0:
        log.unlink()
    return code == 0


def has_cuda():
    import torch

    return torch.cuda.is_available()


def rows_of(bench):
    """Yield (what, against, ratio, ours, entry of the JSON file) of each figure that the table may show."""

    def entry(*keys):
        value = bench
        for key in keys:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        return value if value != {} else None

    for name in ("no", "sphere", "vort"):
        time_each = quantity(entry("simulate", name, "ms_per_image", "darklens compiled"), "ms an image")
        for peer in ("lenstronomy", "caustics"):
            yield f"simulate {name}", peer, entry("simulate", name, f"vs_{peer}"), time_each, "simulate"
    for name, figures in bench.get("train", {}).items():
        time_each = quantity(figures.get("ours_ms_per_image"), "ms an image")
        yield f"train {name}", "the study's training", figures.get("vs_study"), time_each, "train"
    for name, figures in bench.get("infer", {}).items():
        if isinstance(figures, dict):
            yield from infer_rows(name, figures)
    rate = quantity(entry("fit", "images_per_s"), "images/s")
    yield "fit the smooth lens", "scipy", entry("fit", "vs_scipy"), rate, "fit"
    rate = quantity(entry("fit", "hypotheses_images_per_s"), "images/s")
    yield "fit all hypotheses", "", None, rate, "fit"
    time_each = quantity(entry("versions", "here", "ms_per_image", "all"), "ms an image")
    for commit, figures in bench.get("versions", {}).items():
        if isinstance(figures, dict) and commit != "here":
            yield "lens_residual without checks", commit, figures["times_as_fast_here"], time_each, "versions"
    rate = quantity(entry("fit", "realistic", "64", "lenses_per_minute"), "lenses a minute")
    yield "fit a telescope image", "lenstronomy", entry("fit", "realistic_vs_lenstronomy"), rate, "fit"
    rate = quantity(entry("loader", "images_per_s"), "images/s")
    yield "load, shuffled", "fastest training", entry("loader", "vs_fastest_training"), rate, "loader"
    time_each = quantity(entry("stream", "ms_per_image", "compiled"), "ms an image")
    yield "train on a stream, time", "from a store", entry("stream", "compiled_over_store"), time_each, "stream"
    peak = quantity(entry("memory", "simulate", "many", "peak_rss_mb"), "MB")
    yield "memory, simulate 100,000", "1,000", entry("memory", "simulate_100k_over_1k"), peak, "memory"
    peak = quantity(entry("memory", "predict", "many", "peak_rss_mb"), "MB")
    yield "memory, predict 100,000", "1,000", entry("memory", "predict_100k_over_1k"), peak, "memory"
    peak = quantity(entry("memory", "fits", "many", "peak_rss_mb"), "MB")
    yield "memory, predict 2,000, lens_residual", "200", entry("memory", "fits_2000_over_200"), peak, "memory"
    peak = quantity(entry("memory", "train_peak_rss_mb"), "MB with cached pages")
    yield "memory, load from 100,000", "1,000", entry("memory", "train_100k_over_1k"), peak, "memory"
    yield "make a lens on the page, median", "", None, quantity(entry("serve_lens", "p50_s"), "s"), "serve_lens"
    yield "import darklens", "", None, quantity(entry("startup", "import_s"), "s"), "startup"
    yield "darklens --help", "", None, quantity(entry("startup", "help_s"), "s"), "startup"
    for task, figures in bench.get("gpu", {}).items():
        if isinstance(figures, dict):
            time_each = quantity(figures.get("per_s"), "images/s")
            yield f"{task.replace('fit_', 'fit ')} on the GPU", "its CPU", figures.get("vs_cpu"), time_each, "gpu"


def infer_rows(name, figures):
    """Yield a row for each backend that ran a network, or one for a system that has no choice."""
    rates = figures.get("images_per_s")
    if name == "archive":
        for kind in ("fits", "hdf5"):
            task = f"predict {figures['images']:,} images, {kind}"
            yield task, "from memory", figures[f"{kind}_over_memory"], quantity(rates[kind], "images/s"), "infer"
            rate = figures["images_per_s_after_start"][kind]
            ratio = figures[f"{kind}_over_memory_after_start"]
            yield f"{task}, without its start", "from memory", ratio, quantity(rate, "images/s"), "infer"
    elif "wall_s" in figures:
        yield "first prediction of a new process", "", None, quantity(figures["wall_s"], "s"), "infer"
    elif not isinstance(rates, dict):
        yield f"infer {name}", "", None, quantity(rates, "images/s"), "infer"
    else:
        for size in ("batch_64", "batch_1"):
            against = f"eager float32, {size.replace('_', ' of ')}"
            for backend, ratio in figures["ratios"][size].items():
                yield f"infer {name}, {backend}", against, ratio, quantity(rates[backend], "images/s"), "infer"


def table(bench):
    """Return the table as text; a figure that was not measured has no line."""
    commits, rows = bench.get("commits", {}), [HEAD]
    for what, against, ratio, ours, entry in rows_of(bench):
        if ratio is not None or ours:
            rows.append((what, against, "" if ratio is None else f"{ratio:.2f}", ours, commits.get(entry, "")))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    gpu = bench.get("gpu", {}).get("device", "none")
    title = f"{bench.get('hardware', '')}; GPU: {gpu}. Ratios are of speed, ours over theirs, unless the row says time"
    return "\n".join([f"{title} or memory.", "", lines[0], "-" * max(map(len, lines)), *lines[1:]])


def quantity(value, unit):
    return "" if value is None else f"{value:.4g} {unit}"


if __name__ == "__main__":
    main()
