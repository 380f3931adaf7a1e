"""How near a training step is to what the processor can do: `python benchmarks/bound.py [--json results/bench.json]`.

For each network: floating-point operations of a step (torch's counter), the rate that products of matrices reach, the
images a second that this rate would allow if nothing else took time, what is reached, the share of the step's time in
convolutions and matrix products, and the operations that take most of it (torch.profiler). The processor's time is
measured, which other work disturbs less. Both are in the precision that a run takes by itself. `bfloat16_over_float32`
is the time of a product of matrices in bfloat16 over that in float32.
"""

import argparse
import json
import statistics
import time

import torch
from record import record
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from darklens.memory import keep_freed_memory
from darklens.models.zoo import build
from darklens.training.optimisers import AdamW
from darklens.training.precision import precision_of
from darklens.training.recipe import get

NETWORKS = {"resnet_simple": 64, "sis_autoencoder2": 32, "resnet_18": 15}  # and the study's batch
PIXELS, SIDE = 150, 1024
LARGEST = 10
PRODUCTS = ("convolution", "mm", "addmm", "bmm", "_Tiled", "_Unfolded", "_Wide")  # the last are our kernels'


def seconds(work, rounds):
    work()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return times


def matrix_rate(dtype, rounds):
    """Return the best rate (GFLOP/s of one thread) of products of two square matrices."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / min(seconds(lambda: a @ b, rounds)) / 1e9


def bound(name, batch, peak, rounds, *, half):
    network = build(get(name).model, n_pixels=PIXELS, pixel_scale=0.05, n_classes=3)
    network = network.to(memory_format=torch.channels_last)
    optimiser = AdamW(network.parameters(), fused=True)
    images = torch.rand(batch, 1, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (batch,))

    def step():
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    step()
    network.eval()  # PyTorch's layers: the counter does not see into kernels
    with FlopCounterMode(display=False) as counter:
        step()
    network.train()
    operations = counter.get_total_flops() / batch
    took = statistics.median(seconds(step, rounds)) / batch
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        step()
    events = profiled.key_averages(group_by_input_shape=True)
    total = sum(e.self_cpu_time_total for e in events)
    products = sum(e.self_cpu_time_total for e in events if any(word in e.key for word in PRODUCTS))
    largest = sorted(events, key=lambda e: -e.self_cpu_time_total)[:LARGEST]
    return {
        "mflop_per_image": round(operations / 1e6),
        "cpu_ms_per_image": round(1e3 * took, 2),
        "cpu_ms_at_matrix_rate": round(operations / peak / 1e6, 2),
        "share_of_matrix_rate": round(operations / peak / 1e9 / took, 3),
        "time_in_products": round(products / total, 3),
        "time_in": {f"{e.key} {e.input_shapes[:3]}": round(e.self_cpu_time_total / total, 3) for e in largest},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    whole, halved = (matrix_rate(dtype, asked.rounds) for dtype in (torch.float32, torch.bfloat16))
    half = precision_of("auto") == "bf16-mixed"
    peak = halved if half else whole
    found = {"matrix_gflops_of_a_thread": round(peak, 1), "bfloat16_over_float32": round(whole / halved, 2)}
    found["bfloat16"] = half
    for name in asked.networks:
        found[name] = bound(name, NETWORKS[name], peak, asked.rounds, half=half)
    print(json.dumps(found, indent=2))
    record(asked.json, "bound", found)


if __name__ == "__main__":
    main()
