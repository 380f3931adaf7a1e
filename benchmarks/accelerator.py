"""Images a second on an accelerator, of training steps and of inference.

`python benchmarks/accelerator.py [--device cuda] [--json FILE]`

Networks are laid out and run in the precision that a training on that device chooses. Medians over rounds; the device
is waited for at the ends of a round alone. `bench.py` calls it where CUDA is there.
"""

import argparse
import json
import statistics
import time

import torch
from record import record

from darklens.models.zoo import build
from darklens.training.precision import precision_of
from darklens.training.recipe import get

NETWORKS = ("resnet_simple", "sis_autoencoder2", "resnet_18")
PIXELS = 150


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def rates(name, device, batch, steps, rounds):
    network = build(get(name).model, n_pixels=PIXELS, pixel_scale=0.05, n_classes=3).to(device)
    network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    images = torch.rand(batch, 1, PIXELS, PIXELS, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (batch,), device=device)
    half = precision_of("auto") == "bf16-mixed"

    def train():
        optimiser.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            logits = network(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    def infer():
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            network(images)

    found = {"precision": precision_of("auto")}
    for key, step in (("train_images_per_s", train), ("infer_images_per_s", infer)):
        network.train(key.startswith("train"))
        seconds = []
        for _ in range(rounds + 1):
            wait(device)
            started = time.perf_counter()
            for _ in range(steps):
                step()
            wait(device)
            seconds.append(time.perf_counter() - started)
        found[key] = round(batch * steps / statistics.median(seconds[1:]), 1)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    for name, default in (("batch", 256), ("steps", 20), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device; give --device cpu, or leave this benchmark out.")
    found = {name: rates(name, asked.device, asked.batch, asked.steps, asked.rounds) for name in NETWORKS}
    found["device"] = torch.cuda.get_device_name() if asked.device == "cuda" else asked.device
    print(json.dumps(found))
    record(asked.json, "gpu", found)


if __name__ == "__main__":
    main()
