"""Images per second of training steps and of inference on an accelerator.

`python benchmarks/bench_gpu.py [--device cuda] [--json FILE]`

Memory layout and precision are those that a training on the device chooses. Figures are medians over rounds; the device
is synchronised at the ends of a round only. `run.py` calls it if there is a CUDA device.
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

    figures = {"precision": precision_of("auto")}
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
        figures[key] = round(batch * steps / statistics.median(seconds[1:]), 1)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    for name, default in (("batch", 256), ("steps", 20), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device; pass --device cpu.")
    figures = {name: rates(name, options.device, options.batch, options.steps, options.rounds) for name in NETWORKS}
    figures["device"] = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(json.dumps(figures))
    record(options.json, "gpu", figures)


if __name__ == "__main__":
    main()
