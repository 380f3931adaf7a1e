"""Training-step time by OpenMP wait policy and allocator setting, alone and beside a busy process.

`python benchmarks/threads_and_memory.py`; each setting runs in a process of its own, as both act at start-up.
"""

import os
import subprocess
import sys
import time

STEPS, BATCH, PIXELS = 11, 64, 96


def main():
    from darklens.provenance import commit, hardware

    print(f"{hardware()}, commit {commit()}\n")
    print("| beside | wait policy | freed memory | s per step |\n| --- | --- | --- | --- |")
    for beside in ("nothing", "a busy process"):
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside != "nothing" else None
        try:
            for policy in ("ACTIVE", "PASSIVE"):
                for keep in ("returned", "kept"):
                    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
                    command = [sys.executable, __file__, keep]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    print(f"| {beside} | {policy} | {keep} | {float(done.stdout):.2f} |", flush=True)
        finally:
            if other:
                other.kill()


def step_time(keep):
    import torch

    from darklens.memory import keep_freed_memory
    from darklens.models.informed import SISAutoencoder2Config
    from darklens.models.zoo import build

    if keep == "kept":
        keep_freed_memory()
    model = build(SISAutoencoder2Config(), n_pixels=PIXELS, pixel_scale=0.05, n_classes=3)
    model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters())
    images = torch.rand(BATCH, 1, PIXELS, PIXELS)
    labels = torch.arange(BATCH) % 3
    times = []
    for _ in range(STEPS + 2):
        started = time.perf_counter()
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
        times.append(time.perf_counter() - started)
    print(sorted(times[2:])[STEPS // 2])


if __name__ == "__main__":
    step_time(sys.argv[1]) if len(sys.argv) > 1 else main()
