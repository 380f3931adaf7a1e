"""Latency of the "make a lens" panel of the web page: `python benchmarks/bench_serve_lens.py`.

Starts a server with the shipped model and posts lenses one after the other with a growing subhalo mass, as a moving
slider does. The server simulates, classifies and draws each with all maps. `--json` adds the figures to a JSON file.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import httpx
import numpy as np
from record import record

PATIENCE = 120.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--json")
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "darklens.cli", "serve", "lens_residual", "--port", "0"],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        address = server.stdout.readline().split(" at ")[1].split("/ ")[0]
        with httpx.Client(base_url=address, timeout=PATIENCE) as session:
            while session.get("/readyz").status_code != 200:
                time.sleep(0.2)
            figures = latencies(session, options.requests)
    finally:
        server.terminate()
        server.wait(PATIENCE)
    print(figures)
    record(options.json, "serve_lens", figures)


def latencies(session, n):
    """Return the seconds of the first answer and percentiles of the later ones."""
    examples = session.get("/v1/lens").raise_for_status().json()["examples"]
    parameters = next(e["parameters"] for e in examples if e["parameters"]["class"] == "sphere")
    seconds, size = [], 0
    for mass in np.geomspace(1e8, 1e10, n):
        started = time.perf_counter()
        answer = session.post("/v1/lens", json={**parameters, "mass": float(mass)}).raise_for_status()
        seconds.append(time.perf_counter() - started)
        size = len(answer.content)
    warm = seconds[1:]
    return {
        "first_s": round(seconds[0], 3),
        "p50_s": round(statistics.median(warm), 3),
        "p95_s": round(float(np.percentile(warm, 95)), 3),
        "requests": n,
        "answer_bytes": size,
    }


if __name__ == "__main__":
    main()
