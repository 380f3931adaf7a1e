"""Draw docs/images/gallery.png: three classes of every built-in population, `python tools/gallery.py`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from darklens import populations
from darklens.simulate.batch import simulate_batch

OUT = Path(__file__).parents[1] / "docs" / "images" / "gallery.png"
PER_CLASS = 2


def main():
    names = populations.names()
    figure = Figure(figsize=(1.7 * 3 * PER_CLASS, 1.85 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 3 * PER_CLASS)
    for row, name in zip(axes, names, strict=True):
        population = populations.get(name)
        images, truth = simulate_batch(population, 7, range(3 * PER_CLASS))
        for axis, i in zip(row, np.argsort(truth["label"], kind="stable"), strict=True):
            axis.imshow(np.arcsinh(images[i, 0] / np.ptp(images[i, 0]) * 8), origin="lower", cmap="magma")
            axis.set(xticks=[], yticks=[], title=population.class_names[truth["label"][i]])
        row[0].set_ylabel(name, fontsize=8)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=70)


if __name__ == "__main__":
    main()
