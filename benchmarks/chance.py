"""How far chance alone takes the fits: gains in chi2 of a line and of three points on lenses without substructure.

    python benchmarks/chance.py stores/common-test-i/train

Reads a store of common-test-i that lens_residual has fitted (it fits what is missing). Writes
results/common-test-i/hypotheses/chance.json, from which the page of `darklens serve` has its two numbers.
"""

import argparse
from pathlib import Path

import numpy as np

from darklens import __version__, populations, provenance
from darklens.data.store import Store
from darklens.executors import usable_cores
from darklens.files import write_json
from darklens.fit.cache import cached_fits

NAME, PERCENTILES = "common-test-i", [50, 95, 99, 99.9]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    store = Store(parser.parse_args().store)
    fits = cached_fits(store, populations.get(NAME), centred=False, workers=usable_cores())
    smooth = store.labels == store.classes.index("no")
    gains = {"sphere": "delta_chi2_points_3", "vort": "delta_chi2_line"}
    result = {
        "schema": 1,
        "images": int(smooth.sum()),
        "percentiles": PERCENTILES,
        "gains": {
            name: [float(v) for v in np.percentile(fits.column(column)[smooth], PERCENTILES)]
            for name, column in gains.items()
        },
        "data": {"population": NAME, "seed": store.index.seed},
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    write_json(Path(__file__).parent.parent / "results" / NAME / "hypotheses" / "chance.json", result)
    print(result)


if __name__ == "__main__":
    main()
