"""Which statistics of batch normalisation suit averaged weights: `python benchmarks/normalisation.py RUN --stage 1`.

Takes the last checkpoint of a stage of a run on a stream, and prints loss and macro AUC on the stage's validation
images with the weights as they are, and with their running mean, each with the statistics that training had gathered
and with statistics fitted to the weights (docs/decisions/0006-running-mean-of-weights.md).
"""

import argparse
from itertools import islice
from pathlib import Path

import torch

from darklens.evaluation.metrics import macro_auc
from darklens.models.zoo import build
from darklens.training import recipe as recipes
from darklens.training.average import fit_normalisation
from darklens.training.sources import StreamSource

OVERRIDES = ["data.engine=eager", "data.workers=0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", type=int, default=0)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    recipe = recipes.get(str(given.run / "config.yaml"), OVERRIDES)
    stage = recipe.stages[given.stage]
    source = StreamSource(recipe.data, recipe.stages, given.seed)
    fresh, held_out = source.loaders(stage, given.stage, 1000)
    gathering = [recipe.data.preprocess(images) for images, _ in islice(fresh, 16)]
    validation = list(islice(held_out, -(-given.images // stage.batch_size)))
    checkpoint = torch.load(
        given.run / "checkpoints" / f"stage{given.stage}-{stage.task}" / "last.ckpt", weights_only=True
    )
    current, mean = checkpoint["current_model_state"], checkpoint["state_dict"]
    gathered = {name: value for name, value in current.items() if "running_" in name}
    for title, state in (("weights", current), ("running mean", {**mean, **gathered})):
        network = build(
            recipe.model,
            n_pixels=recipe.data.preprocess.output_size(source.n_pixels),
            pixel_scale=source.pixel_scale * recipe.data.preprocess.bin,
            n_classes=len(source.classes),
        )
        network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
        for statistics in ("gathered", "fitted"):
            with torch.no_grad():
                if statistics == "fitted":
                    fit_normalisation(network, gathering)
                network.eval()
                logits = torch.cat([network(recipe.data.preprocess(images)) for images, _ in validation]).double()
            labels = torch.cat([labels for _, labels in validation])
            loss = float(torch.nn.functional.cross_entropy(logits, labels))
            auc = macro_auc(labels.numpy(), logits.softmax(1).numpy())
            print(f"{title}, {statistics} statistics: loss {loss:.3f}, macro AUC {auc:.4f}", flush=True)


if __name__ == "__main__":
    main()
