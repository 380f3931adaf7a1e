"""CPU time to render an image, by batch size, on one thread: `python benchmarks/render_batch_size.py`."""

import time

import torch

from darklens.provenance import commit, hardware
from darklens.simulate import populations
from darklens.simulate.draw import draw
from darklens.simulate.render import render

N = 48
BATCHES = (1, 3, 16, 48)


def main():
    torch.set_num_threads(1)
    print(f"{hardware()}, commit {commit()}\n")
    print("| population |" + "".join(f" batch {b} |" for b in BATCHES))
    print("|" + " --- |" * (1 + len(BATCHES)))
    for name in populations.names():
        population = populations.get(name)
        truth = draw(population, 0, range(N))
        cells = []
        for batch in BATCHES:
            render(population, {k: v[:batch] for k, v in truth.items()})
            started = time.process_time()
            for i in range(0, N, batch):
                render(population, {k: v[i : i + batch] for k, v in truth.items()})
            cells.append(f" {(time.process_time() - started) / N * 1e3:.1f} |")
        print(f"| {name} |" + "".join(cells))


if __name__ == "__main__":
    main()
