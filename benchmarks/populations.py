"""CPU time to simulate an image of each class of every population, on one thread: for the populations' cards.

`python benchmarks/populations.py [--images 20] [--rounds 5] [--json results/populations.json]`

Classes take turns in every round; a figure is the median over rounds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from darklens.files import write_json
from darklens.memory import keep_freed_memory
from darklens.provenance import commit, hardware
from darklens.simulate import populations
from darklens.simulate.batch import simulate_batch


def milliseconds(name, *, images, rounds):
    population = populations.get(name)
    classes = population.class_names
    taken = {its: [] for its in classes}
    for turn in range(rounds + 1):
        for label, its in enumerate(classes):
            start = time.process_time()
            simulate_batch(population, turn, [label + len(classes) * k for k in range(images)])
            taken[its].append((time.process_time() - start) / images * 1e3)
    # The first turn prepares tables and memory.
    return {its: round(statistics.median(times[1:]), 2) for its, times in taken.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    found = {name: milliseconds(name, images=chosen.images, rounds=chosen.rounds) for name in populations.names()}
    report = {"schema": 1, "ms_per_image": found, "provenance": {"commit": commit(), "hardware": hardware()}}
    print(json.dumps(report, indent=2))
    if chosen.json:
        write_json(chosen.json, report)


if __name__ == "__main__":
    main()
