"""Wall time per image of training on a stream over that of training from a store, for one recipe.

`python benchmarks/bench_stream.py [--recipe resnet_simple] [--images 960] [--rounds 5] [--json FILE]`

The two take turns. The time is that of the fastest epoch after the first, which includes the workers' start.
"""

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path

from record import record

from darklens import populations
from darklens.data.store import Store
from darklens.simulate.generate import generate
from darklens.training.recipe import get
from darklens.training.run import train

POPULATION = "common-test-i"
EPOCHS = 4


def milliseconds(recipe, store, images, out):
    train(recipe, store, out)
    with (out / "metrics.csv").open(newline="") as rows:
        later = [float(row["seconds"]) for row in csv.DictReader(rows) if row["epoch"] != "0"]
    return 1e3 * min(later) / images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="resnet_simple")
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    n_validation = 96
    common = ["stages.0.batch_size=64", f"stages.0.epochs={EPOCHS}"]
    fraction = n_validation / (options.images + n_validation)
    from_store = get(options.recipe, [*common, f"data.validation_fraction={fraction}"])
    stream = ["data.kind=stream", f"data.population={POPULATION}", f"data.images_per_epoch={options.images}"]
    stream += [f"data.validation_images={n_validation}"]
    from_stream = {
        engine: get(options.recipe, [*common, *stream, f"data.backend={engine}"]) for engine in ("eager", "compiled")
    }
    times = {"store": [], "eager": [], "compiled": []}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        generate(
            populations.get(POPULATION), folder / "store", n_per_class=(options.images + n_validation) // 3, seed=1
        )
        store = Store(folder / "store")
        for i in range(options.rounds):
            times["store"].append(milliseconds(from_store, store, options.images, folder / f"store{i}"))
            for engine, recipe in from_stream.items():
                times[engine].append(milliseconds(recipe, None, options.images, folder / f"{engine}{i}"))
    figures = {
        "recipe": options.recipe,
        "ms_per_image": {name: round(statistics.median(t), 2) for name, t in times.items()},
        **{
            f"{engine}_over_store": round(
                statistics.median(b / a for a, b in zip(times["store"], times[engine], strict=True)), 3
            )
            for engine in from_stream
        },
    }
    print(json.dumps(figures))
    record(options.json, "stream", figures)


if __name__ == "__main__":
    main()
