"""Peak memory of `darklens simulate`, its workers included, for few and for many images; their ratio as JSON.

`python benchmarks/simulate_memory.py [--few 1000] [--many 100000] [--pixels 32] [--workers 2]`
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

import psutil
from record import record


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("few", 1_000), ("many", 100_000), ("pixels", 32), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json")
    asked = parser.parse_args()
    found = {"pixels": asked.pixels, "workers": asked.workers}
    for name, n in (("few", asked.few), ("many", asked.many)):
        peak, seconds = peak_rss(n, asked.pixels, asked.workers)
        found[name] = {"images": n // 3 * 3, "peak_rss_mb": round(peak / 1e6, 1), "seconds": round(seconds, 1)}
    found["many_over_few"] = round(found["many"]["peak_rss_mb"] / found["few"]["peak_rss_mb"], 3)
    print(json.dumps(found, indent=2))
    record(asked.json, "memory", {"simulate_100k_over_1k": found["many_over_few"], "simulate": found})


def peak_rss(n, pixels, workers):
    """Return the largest sum of the resident memory of the command and its children, in bytes, and the time taken.

    Pages that processes share, such as torch's code, are counted in each.
    """
    with tempfile.TemporaryDirectory() as work:
        size = [f"field.n_pixels={pixels}", "--n-per-class", str(n // 3), "--workers", str(workers)]
        command = [sys.executable, "-m", "darklens.cli", "simulate", "common-test-i", "--out", f"{work}/s", *size]
        started, peak = time.perf_counter(), 0
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while run.poll() is None:
            peak = max(peak, rss(psutil.Process(run.pid)))
            time.sleep(0.05)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak, time.perf_counter() - started


def rss(process):
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:  # it ended in between
            continue
    return total


if __name__ == "__main__":
    main()
