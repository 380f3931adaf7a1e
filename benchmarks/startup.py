"""Seconds to `import darklens` and to `darklens --help`, medians.

`python benchmarks/startup.py [--rounds 11] [--json FILE]`

A bare `python -c pass` takes its turn with them, to say what of that is Python's own.
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
    asked = parser.parse_args()
    times = {name: [] for name in COMMANDS}
    for _ in range(asked.rounds + 1):
        for name, words in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    found = {name: round(statistics.median(t[1:]), 3) for name, t in times.items()}
    print(json.dumps(found))
    record(asked.json, "startup", found)


if __name__ == "__main__":
    main()
