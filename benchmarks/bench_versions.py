"""Speed of `lens_residual` in this working tree and in other commits, by stage of the fit, and whether classes agree.

    python benchmarks/bench_versions.py bcef962 [COMMIT ...] [--images 96] [--rounds 9] [--json results/bench.json]

Each version runs in a process of its own with one thread, without the checks by a wider fit, and takes turns with the
others. Times are processor time per image of common-test-i; ratios are medians over the rounds. With `--rounds 0`, only
the classes of `--agreement` images are compared (entry `agreement`), which a busy machine does not change.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from record import record

from darklens import populations
from darklens.evaluation.metrics import calibration_error, macro_auc
from darklens.simulate.batch import simulate_batch

ROOT = Path(__file__).parent.parent
HERE = "here"
# Functions of a stage in any version since bcef962; what they leave is the smooth fit and the network.
STAGES = {
    "coarse fits of lines": ["hypotheses._coarse_lines", "line_fit._coarse_lines"],
    "fine fits of the line": ["hypotheses._anneal", "line_fit._anneal"],
    "fits of points": ["hypotheses._points", "perturber_fits.fit_points"],
    "maps of lines and points": [f"evidence.Templates.{name}" for name in ("lines", "points", "points_and_lines")],
}
WORKER = """
import functools, importlib.util, json, sys, time
import numpy as np, torch
torch.set_num_threads(1)
from darklens.bundle import Bundle

stages, images = json.loads(sys.argv[1]), np.load(sys.argv[2])
took, stack = {}, []

def timed(name, function):
    @functools.wraps(function)
    def run(*arguments, **options):
        started = time.process_time()
        stack.append(0.0)
        result = function(*arguments, **options)
        whole, inside = time.process_time() - started, stack.pop()
        took[name] = took.get(name, 0.0) + whole - inside
        if stack:
            stack[-1] += whole
        return result
    return run

for name, places in stages.items():
    for place in places:
        module, *inside, attribute = place.split(".")
        if importlib.util.find_spec(f"darklens.fit.{module}") is None:
            continue
        owner = importlib.import_module(f"darklens.fit.{module}")
        for part in inside:
            owner = getattr(owner, part)
        if hasattr(owner, attribute):
            setattr(owner, attribute, timed(name, getattr(owner, attribute)))

bundle = Bundle.load("lens_residual")
if hasattr(bundle, "with_companions"):
    bundle = bundle.with_companions(fallback="", checked_by="")
classify = bundle.classify if hasattr(bundle, "classify") else bundle.predict
classify(images[:16])
print(flush=True)
for line in sys.stdin:
    first, last, file = json.loads(line)
    took.clear()
    started = time.process_time()
    probabilities = classify(images[first:last]).probabilities
    whole = time.process_time() - started
    if file:
        np.save(file, np.asarray(probabilities))
    print(json.dumps({**took, "all": whole}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", help="commits to compare with, the oldest first")
    for name, default in (("images", 96), ("rounds", 9), ("agreement", 750)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    n = max(options.images, options.agreement)
    parts = [simulate_batch(populations.get("common-test-i"), 11, range(k, min(k + 250, n))) for k in range(0, n, 250)]
    label = np.concatenate([truth["label"] for _, truth in parts])
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        images = Path(work) / "images.npy"
        np.save(images, np.concatenate([image for image, _ in parts]))
        sources = {commit: source_of(commit, Path(work), stack) for commit in options.commits} | {HERE: ROOT / "src"}
        workers = {name: stack.enter_context(start_worker(source, images)) for name, source in sources.items()}
        rounds = [
            {name: ask(worker, 0, options.images) for name, worker in workers.items()} for _ in range(options.rounds)
        ]
        probabilities = {}
        for name, worker in workers.items():
            ask(worker, 0, options.agreement, Path(work) / f"{name}.npy")
            probabilities[name] = np.load(Path(work) / f"{name}.npy")
    label, here = label[: options.agreement], probabilities[HERE]
    result = {"images": options.images, "rounds": options.rounds, "compared_images": len(label)}
    for name, probability in probabilities.items():
        speed = {}
        if rounds:
            speed["ms_per_image"] = stage_times([each[name] for each in rounds], options.images)
            speed["times_as_fast_here"] = round(statistics.median(r[name]["all"] / r[HERE]["all"] for r in rounds), 2)
        result[name] = {
            **speed,
            "macro_auc": round(float(macro_auc(label, probability)), 5),
            "accuracy": round(float((probability.argmax(1) == label).mean()), 4),
            "calibration_error": round(calibration_error(label, probability), 4),
            "same_class_as_here": round(float((probability.argmax(1) == here.argmax(1)).mean()), 4),
        }
    print(json.dumps(result, indent=2))
    record(options.json, "versions" if rounds else "agreement", result)


def source_of(commit: str, work: Path, stack: ExitStack) -> Path:
    """Return the package of a commit, checked out until the stack is closed."""
    folder = work / commit
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", folder, commit], check=True)
    stack.callback(subprocess.run, ["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)
    return folder / "src"


def start_worker(source: Path, images: Path) -> subprocess.Popen[str]:
    """Start a worker, and return it when it has loaded its model."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, json.dumps(STAGES), str(images)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    worker = subprocess.Popen(command, env=environment, cwd=source, text=True, **pipes)
    worker.stdout.readline()
    return worker


def ask(worker: subprocess.Popen[str], first: int, last: int, file: Path | None = None) -> dict[str, float]:
    """Return the processor seconds of each stage for images first to last."""
    worker.stdin.write(json.dumps([first, last, None if file is None else str(file)]) + "\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def stage_times(rounds: list[dict[str, float]], n: int) -> dict[str, float]:
    """Return medians over the rounds, ms per image."""
    names = [*STAGES, "all"]
    times = {name: statistics.median(each.get(name, 0.0) for each in rounds) / n * 1e3 for name in names}
    rest = times["all"] - sum(times[name] for name in STAGES)
    return {name: round(time, 1) for name, time in {"smooth fit and the rest": rest, **times}.items()}


if __name__ == "__main__":
    main()
