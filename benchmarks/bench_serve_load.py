"""Load test of `darklens serve`: lost and wrong answers, latency, memory.

    python benchmarks/bench_serve_load.py [--model runs/resnet]

50 clients, each with its own address where the system has 127.0.0.2, send 2,000 requests of one to four files: good
ones, with NaN pixels, masked regions, other sizes and pixel scales, and bad ones (too many NaN, wrong sizes, truncated
FITS, no images), with HTML and control characters in some names. Every answer is compared with what
`Bundle.classify` gives in this process for that file alone: status, probabilities and changes. Meanwhile a client sends
its body byte by byte, clients leave before the answer, and bursts fill the queue. At the end the server gets SIGTERM
under load.
Writes results/serve_load.json. Without --model the model is a small untrained network, so that the server and not the
classifier is timed.
"""

import argparse
import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
from astropy.io import fits

from darklens import __version__, provenance
from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.data.prepare import prepare
from darklens.data.readers import read_image
from darklens.errors import DarklensError
from darklens.files import write_json
from darklens.models.resnet_simple import ResNetSimpleConfig

OUT = Path(__file__).parent.parent / "results" / "serve_load.json"
PATIENCE, TOLERANCE, IMAGES = 300.0, 1e-5, 8
BROKEN = {
    "empty": b"",
    "text": b"no image",
    "png": b"\x89PNG\r\n\x1a\n",
    "pickle": b"\x80\x04K\x01.",
    "fits": b"SIMPLE  =" + b" " * 3000,
    "npz": b"PK\x03\x04" + b"\0" * 40,
}
NAMES = (
    "{}",
    "<script>alert({})</script>.npy",
    "<img src=x onerror=alert(1)> {}",
    "&lt;{}&amp;\u202e.npy",
    "a\x1b[31m{}",
)


@dataclass
class File:
    """A file to send, its kind, and what is right: probabilities and changes, or None for a bad file."""

    kind: str
    content: bytes
    probabilities: np.ndarray | None = None
    changes: tuple = ()


@dataclass
class Tally:
    """Outcomes of requests."""

    codes: Counter = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    files: Counter = field(default_factory=Counter)
    seconds: list = field(default_factory=list)
    memory: list = field(default_factory=list)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or untrained(Path(scratch) / "untrained")
        bundle = Bundle.load(model)
        load = Load([classified(file, bundle, Path(scratch) / "file") for file in files(bundle)], options)
        server = subprocess.Popen(
            [sys.executable, "-m", "darklens.cli", "serve", str(model), "--port", "0", "--queue", "128"],
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            load.address = server.stdout.readline().split(" at ")[1].split("/ ")[0]
            asyncio.run(load.run(server))
            _, log = server.communicate(timeout=PATIENCE)
        finally:
            server.kill()
    answered, accepted = map(int, re.search(r"Stopped: (\d+) of (\d+) accepted", log).groups())
    result = load.report() | {
        "model": options.model.name if options.model else "untrained resnet_simple",
        "stop": load.stop | {"exit_code": server.returncode, "accepted": accepted, "answered": answered},
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    write_json(options.out, result)
    print(result)
    clean = result["lost"] == result["wrong"] == 0 and answered == accepted and server.returncode == 0
    sys.exit(0 if clean and load.stop["lost"] == 0 else 1)


class Load:
    """The clients of one server."""

    def __init__(self, files, options):
        self.files, self.options = files, options
        self.good = [file for file in files if file.kind == "plain"]
        self.tally, self.others, self.stop = Tally(), Counter(), {}
        self.remaining = iter(range(options.requests))
        self.done, self.address = asyncio.Event(), ""

    async def run(self, server):
        process = psutil.Process(server.pid)
        while (await self.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.2)
        started = time.perf_counter()
        disturbances = [self.watch(process), self.trickle(), self.leave(), self.burst()]
        running = [asyncio.create_task(each) for each in disturbances]
        await asyncio.gather(*(self.client(i) for i in range(self.options.clients)))
        self.wall = time.perf_counter() - started
        self.done.set()
        await asyncio.gather(*running)
        self.ready_status = (await self.get("/readyz")).status_code
        await self.terminate(server)

    async def get(self, path):
        async with httpx.AsyncClient(timeout=PATIENCE) as session:
            return await session.get(self.address + path)

    async def client(self, i):
        random = np.random.default_rng(i + 1)
        async with httpx.AsyncClient(timeout=PATIENCE, transport=transport(i)) as session:
            for _ in self.remaining:
                await self.one(session, random)

    async def one(self, session, random):
        """Send a request until the server accepts it, and check the answer."""
        chosen = [self.files[k] for k in random.integers(0, len(self.files), random.integers(1, 5))]
        names = [NAMES[random.integers(len(NAMES))].format(i) for i in range(len(chosen))]
        files = [("files", (name, file.content)) for name, file in zip(names, chosen, strict=True)]
        while True:
            started = time.perf_counter()
            try:
                response = await session.post(f"{self.address}/v1/predict", files=files)
            except httpx.TransportError:
                self.tally.lost += 1
                return
            self.tally.codes[response.status_code] += 1
            if response.status_code not in (429, 503):
                break
            await asyncio.sleep(float(response.headers["retry-after"]) * random.random())
        self.tally.seconds.append(time.perf_counter() - started)
        self.tally.wrong += response.status_code != 200 or not self.right(response.json()["images"], chosen)
        self.tally.files.update(file.kind for file in chosen)

    def right(self, results, chosen):
        return len(results) == len(chosen) and all(map(self.agrees, results, chosen))

    def agrees(self, result, file):
        """Return whether a result is that of the file alone."""
        if file.probabilities is None:
            return result["status"] == "error" and bool(result["message"])
        if result["status"] != "ok" or tuple(result["changes"]) != file.changes:
            return False
        return np.abs(np.array([*result["probabilities"].values()]) - file.probabilities).max() <= TOLERANCE

    async def watch(self, process):
        """Record the memory of the server and its readers."""
        while not self.done.is_set():
            family = [process, *process.children(recursive=True)]
            self.tally.memory.append(sum(each.memory_info().rss for each in family) / 1e6)
            await asyncio.sleep(0.5)

    async def trickle(self):
        """Send a body byte by byte; the server closes the connection."""
        host, port = self.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=a\r\n"
        part = '--a\r\nContent-Disposition: form-data; name="files"; filename="a.npy"\r\n\r\n'
        writer.write(f"{head}Content-Length: 100000\r\n\r\n{part}".encode())
        answer = asyncio.create_task(reader.read(12))
        while not answer.done() and not self.done.is_set():
            writer.write(b"x")
            await asyncio.sleep(0.2)
        if answer.done():
            self.others[f"slow client: {answer.result()[9:].decode()}"] += 1
        else:
            answer.cancel()
            self.others["slow client: still sending when the others had finished"] += 1
        writer.close()

    async def leave(self):
        """Send files and leave before the answer."""
        while not self.done.is_set():
            async with httpx.AsyncClient(timeout=0.05, transport=transport(200)) as session:
                try:
                    await session.post(
                        f"{self.address}/v1/predict", files=[("files", ("a.npy", self.good[0].content))] * 8
                    )
                except httpx.TimeoutException:
                    self.others["killed clients"] += 1
                except httpx.TransportError:
                    self.others["killed clients that the server cut off"] += 1
            await asyncio.sleep(0.3)

    async def burst(self):
        """Send so many images that the queue is full now and then."""
        async with httpx.AsyncClient(timeout=PATIENCE, transport=transport(201)) as session:
            while not self.done.is_set():
                files = [("files", (f"{i}.npy", self.good[i % IMAGES].content)) for i in range(60)]
                answers = await asyncio.gather(
                    *(session.post(f"{self.address}/v1/predict", files=files) for _ in range(4)), return_exceptions=True
                )
                for answer in answers:
                    failed = isinstance(answer, Exception)
                    self.others[f"burst: {type(answer).__name__ if failed else answer.status_code}"] += 1
                await asyncio.sleep(1)

    async def terminate(self, server):
        """Send SIGTERM while clients send without a pause: all accepted requests must be answered."""
        stopping, counts = asyncio.Event(), Counter()

        async def client(i):
            random = np.random.default_rng(1000 + i)
            async with httpx.AsyncClient(timeout=PATIENCE, transport=transport(i)) as session:
                while True:
                    file = self.good[random.integers(IMAGES)]
                    try:
                        response = await session.post(
                            f"{self.address}/v1/predict", files=[("files", ("a.npy", file.content))]
                        )
                    except httpx.TransportError:  # not accepted, or lost: the server's count shows which
                        counts["refused" if stopping.is_set() else "lost"] += 1
                        return
                    if response.status_code == 503 and stopping.is_set():
                        counts["refused by a stopping server"] += 1
                        return
                    if response.status_code == 200:
                        counts["answered"] += 1
                        counts["wrong"] += not self.right(response.json()["images"], [file])

        async def stop():
            await asyncio.sleep(2)
            stopping.set()
            server.send_signal(signal.SIGTERM)

        await asyncio.gather(stop(), *(client(i) for i in range(self.options.clients)))
        self.stop = {"lost": 0, "wrong": 0} | counts

    def report(self):
        tally, seconds = self.tally, np.array(self.tally.seconds)
        memory = np.array(tally.memory)
        quarter = max(1, len(memory) // 4)
        return {
            "schema": 1,
            "requests": len(seconds),
            "clients": self.options.clients,
            "lost": tally.lost,
            "wrong": tally.wrong,
            "files": dict(sorted(tally.files.items())),
            "codes": {str(code): n for code, n in sorted(tally.codes.items())},
            "others": dict(self.others),
            "ready_afterwards": self.ready_status == 200,
            "requests_per_second": len(seconds) / self.wall,
            "seconds": {f"p{p}": float(np.percentile(seconds, p)) for p in (50, 95, 99)},
            "memory_mb": {
                "first_quarter": float(np.median(memory[:quarter])),
                "last_quarter": float(np.median(memory[-quarter:])),
                "largest": float(memory.max()),
            },
        }


def transport(i):
    """Clients with an address each, where the loopback network has several."""
    address = f"127.0.1.{i % 250 + 1}" if sys.platform == "linux" else None
    return httpx.AsyncHTTPTransport(local_address=address, retries=0)


def untrained(folder):
    contract = Contract.untrained(ResNetSimpleConfig(), n_pixels=64, pixel_scale=0.1)
    torch.manual_seed(0)
    Bundle(contract, contract.build()).save(folder)
    return folder


def files(bundle):
    """Return files of all kinds for a model."""
    n, scale = bundle.contract.n_pixels, bundle.contract.pixel_scale
    g = np.random.default_rng(0)

    def image(side=n, masked=0):
        pixels = g.poisson(20, (side, side)).astype(np.float32)
        pixels.ravel()[g.permutation(side * side)[:masked]] = np.nan
        return pixels

    def with_region():
        pixels = image()
        pixels[n // 4 : n // 4 + 6, 5 : n // 3] = np.nan
        return pixels

    def stated(side, pixel_scale):
        stream = io.BytesIO()
        np.savez(stream, image=image(side), pixel_scale=pixel_scale)
        return stream.getvalue()

    def as_fits():
        stream = io.BytesIO()
        fits.PrimaryHDU(image(), fits.Header({"PIXSCALE": scale})).writeto(stream)
        return stream.getvalue()

    makers = {
        "plain": lambda: npy(image()),
        "NaN pixels": lambda: npy(image(masked=int(g.integers(1, 40)))),
        "masked region": lambda: npy(with_region()),
        "FITS": as_fits,
        "larger": lambda: npy(image(n + 9)),
        "padded": lambda: npy(image(round(0.8 * n))),
        "other pixel scale": lambda: stated(round(1.4 * n), 0.8 * scale),
        "mostly NaN": lambda: npy(image(masked=n * n // 2)),
        "too small": lambda: npy(image(n // 3)),
        "truncated FITS": lambda: as_fits()[: 2880 + int(g.integers(0, 4 * n * n))],
        "constant": lambda: npy(np.ones((n, n))),
    }
    made = [File(kind, make()) for kind, make in makers.items() for _ in range(IMAGES if kind == "plain" else 3)]
    return made + [File(f"no image: {kind}", content) for kind, content in BROKEN.items()]


def classified(file, bundle, path):
    """Return a file with the answer of the bundle for it alone."""
    contract = bundle.contract
    path.write_bytes(file.content)
    try:
        prepared = prepare(read_image(path), n_pixels=contract.n_pixels, pixel_scale=contract.pixel_scale)
    except DarklensError:
        return file
    mask = None if prepared.mask is None else prepared.mask[None, None]
    answer = bundle.classify(prepared.pixels[None, None], mask=mask)
    return File(file.kind, file.content, answer.probabilities[0], prepared.changes)


def npy(image):
    stream = io.BytesIO()
    np.save(stream, image)
    return stream.getvalue()


if __name__ == "__main__":
    main()
