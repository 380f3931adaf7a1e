"""Seconds to `import darklens` and to `darklens --help`, medians.

`python benchmarks/bench_startup.py [--rounds 11] [--json FILE]`

`python -c pass` takes turns with them and shows how much of the time is Python's start.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from record import record

COMMANDS = {
    "python_s": ["-c", "pass"],
    "import_s": ["-c", "import darklens"],
    "help_s": ["-m", "darklens.cli", "--help"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json")
    options = parser.parse_args()
    times = {name: [] for name in COMMANDS}
    for _ in range(options.rounds + 1):
        for name, words in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    figures = {name: round(statistics.median(t[1:]), 3) for name, t in times.items()}
    print(json.dumps(figures))
    record(options.json, "startup", figures)


if __name__ == "__main__":
    main()
