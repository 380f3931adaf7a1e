"""All benchmarks one after the other, into one JSON file and one table: `python benchmarks/bench.py [--quick]`.

Each part takes turns with what it is compared with and reports medians of ratios. Its own output goes to a log beside
the JSON file; a part that fails is named at the end, and the exit code is 1. `--quick` has small sizes, to see that
all parts run: its figures mean little, and go to the folder for temporary files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import table

HERE = Path(__file__).parent
SCRATCH = str(Path(tempfile.gettempdir()) / "darklens-bench")
RESULTS = HERE.parent / "results"
INFER_QUICKLY = ["--rounds", "1", "--images", "4", "--systems", "resnet_simple", "--skip", "lens_residual", "cold"]
# Name: script, its arguments, its arguments with --quick.
PARTS = {
    "startup": ("startup.py", [], ["--rounds", "3"]),
    "train": ("train.py", [], ["--rounds", "1", "--steps", "1", "--batch", "8", "--networks", "resnet_simple"]),
    "infer": ("infer.py", [], INFER_QUICKLY),
    "simulate": ("simulate.py", ["--images", "240"], ["--images", "6", "--rounds", "1"]),
    "stream": ("stream.py", [], ["--images", "96", "--rounds", "1"]),
    "fit": ("fit.py", ["--rounds", "5"], ["--images", "9", "--scipy-images", "1", "--rounds", "1", "--out", SCRATCH]),
    "loader": ("loader.py", [], ["--few", "1024", "--many", "2048", "--rounds", "1"]),
    "serve_lens": ("serve_lens.py", [], ["--requests", "3"]),
    "memory": ("simulate_memory.py", [], ["--few", "60", "--many", "600", "--pixels", "16"]),
    "gpu": ("accelerator.py", [], ["--batch", "8", "--steps", "1", "--rounds", "1"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    target = asked.json or (Path(SCRATCH) if asked.quick else RESULTS) / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in asked.only:
        script, full, quick = PARTS[name]
        if name == "gpu" and not has_cuda():
            continue
        words = [sys.executable, str(HERE / script), "--json", str(target), *(quick if asked.quick else full)]
        log, started = target.with_name(f"{target.stem}-{name}.log"), time.perf_counter()
        print(f"{name} ... ", end="", flush=True)
        with log.open("w", encoding="utf-8") as stream:
            done = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, check=False)
        print(
            f"{time.perf_counter() - started:.0f} s" + (f", failed: see {log}" if done.returncode else ""), flush=True
        )
        if done.returncode:
            failed.append(name)
        else:
            log.unlink()
    if target.exists():
        print("\n" + table(json.loads(target.read_text(encoding="utf-8"))))
        print(f"\nWritten to {target}")
    if failed:
        sys.exit(f"These parts failed: {', '.join(failed)}.")


def has_cuda():
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
