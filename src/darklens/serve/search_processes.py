"""Processes that search uploaded telescope images for perturbers.

They also read the files, which are not trusted, with bounded memory, and are killed when no client waits any more. They
are not those that read images to classify, so a search, which takes seconds, does not keep predictions waiting.
"""

import base64
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

import darklens
from darklens.data.readers.planes import contents
from darklens.errors import DarklensError, InputError
from darklens.fit.lens_measures import measures
from darklens.fit.perturber_profiles import Redshifts
from darklens.fit.perturber_sentences import mass_sentence, threshold_sentences
from darklens.fit.perturber_table import SearchOptions, search_row
from darklens.fit.perturbers import SearchResult, find_perturbers
from darklens.fit.scene_fit import fit
from darklens.scene import specification
from darklens.scene.observation import Observation
from darklens.scene.observation_files import Inputs, read_observation
from darklens.scene.specification import NoiseSpecification, PSFSpecification
from darklens.serve.reader_processes import (
    FileProcess,
    ProcessLostError,
    handle_files,
    process_context,
    reworded,
    store,
)
from darklens.serve.search_request import SearchQuery

MEMORY = 3_000_000_000  # bytes that a process may allocate beyond those it has at its start
_LOST = {
    "slow": "takes too long to search; cut out the lens, or choose a simpler scene.",
    "killed": "cannot be searched: the process that searched it was killed; send it again.",
    "crashed": "cannot be searched: it crashed the process that searched it; save the files again.",
}
# Messages name options of the command line; the web interface has parameters and other files.
_NAMES = {
    "--noise-map, or noise.background_rms=... and noise.exposure=...": "noise_map, or background_rms and exposure",
    "noise.* of the scene": "background_rms or exposure",
    "noise.background_rms": "background_rms",
    "noise.exposure": "exposure",
    "half_width (arcsec) of the scene": "half_width",
    "--image NAME": "the parameter image",
    "--pixel-scale": "pixel_scale",
    "--noise-map": "noise_map",
    "--psf and psf.file or psf.fwhm of the scene": "the file psf and psf_fwhm",
    "psf.oversampling": "the oversampling",
    "--psf": "psf",
    "--mask": "mask",
}
_TEXTS = ("message", "detected")  # columns of a row that are no numbers
_OPTIONAL = ("x", "y", "log10_mass", "log10_mass_error")  # numbers that a search without a perturber lacks
_SIGMA = "standard deviations"


@dataclass(eq=False)
class SearchJob:
    """A search that a request waits for.

    Attributes:
        query: What to search for.
        files: Names and contents of the files by field (`search_request.FILES`).
        max_pixels: Largest number of pixels of the image.
        result: The content of a `SearchResponse`.
    """

    query: SearchQuery
    files: Mapping[str, tuple[str, bytes]]
    max_pixels: int
    result: "Future[dict[str, Any]]" = field(default_factory=Future)
    process: FileProcess | None = None
    is_abandoned: bool = False


class SearchPool:
    """Runs searches in separate processes, which start with the first searches.

    Args:
        n: Number of processes.
        timeout: Time in s after which a process that is still searching is killed.
    """

    def __init__(self, n: int, *, timeout: float) -> None:
        self._timeout, self._context, self._lock = timeout, process_context(), threading.Lock()
        self._local = threading.local()
        self._processes: list[FileProcess] = []
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="search")

    def submit(self, job: SearchJob) -> None:
        """Queue a search; `abandon` it when no client waits for it any more."""
        self._threads.submit(self._run, job)

    def abandon(self, job: SearchJob) -> None:
        """Drop a search, or kill the process that runs it."""
        with self._lock:
            job.is_abandoned = True
            process = job.process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the processes and remove their files."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()

    def _run(self, job: SearchJob) -> None:
        if not job.result.set_running_or_notify_cancel():
            return
        try:
            job.result.set_result(self._search(job))
        except Exception as error:
            job.result.set_exception(error)

    def _search(self, job: SearchJob) -> dict[str, Any]:
        process = self._process()
        with self._lock:
            if job.is_abandoned:
                raise TimeoutError
            job.process = process
        names = {role: name for role, (name, _) in job.files.items()}
        request = {"query": job.query.model_dump(), "names": names, "max_pixels": job.max_pixels}
        try:
            (reply,) = process.exchange(request, [data for _, data in job.files.values()], self._timeout)
        except ProcessLostError as error:
            with suppress(OSError):  # the next search starts it
                process.restart()
            return _failure(request, f"{names['image']}: {_LOST[str(error)]}")
        finally:
            with self._lock:
                job.process = None
        content: dict[str, Any] = json.loads(reply)
        if "errno" in content:
            raise OSError(content["errno"], os.strerror(content["errno"]))
        return content

    def _process(self) -> FileProcess:
        """Return the process of this thread."""
        if not hasattr(self._local, "process"):
            self._local.process = FileProcess(search_files, self._context)
            self._processes.append(self._local.process)
        process: FileProcess = self._local.process
        return process


def search_files(connection: Connection, folder: str) -> None:
    """Search images until the connection is closed: the child's side of one process (`handle_files`)."""
    torch.set_num_threads(1)

    def handle(request: dict[str, Any], data: list[bytes]) -> list[bytes]:
        paths = {role: Path(folder, role) for role in request["names"]}
        try:
            for path, content in zip(paths.values(), data, strict=True):
                store(path, content)
            data.clear()
        except OSError as error:
            reply = {"errno": error.errno}
        else:
            reply = search(request, paths)
        finally:
            for path in paths.values():
                path.unlink(missing_ok=True)
        return [json.dumps(reply, allow_nan=False).encode()]

    handle_files(connection, folder, handle, memory=MEMORY)


def search(request: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[str, Any]:
    """Read the files of a request and search the image; a problem becomes one sentence.

    Args:
        request: `query`, `names` of the files by field, and `max_pixels`.
        paths: Files by field.

    Returns:
        The content of a `SearchResponse`.
    """
    name = request["names"]["image"]
    try:
        return _search(request, paths)
    except DarklensError as error:
        names = request["names"]
        displayed = {str(path): names[role] for role, path in paths.items()}
        message = reworded(" ".join(str(error).split()), displayed | _NAMES)
        return _failure(request, message if message.startswith(tuple(names.values())) else f"{name}: {message}")
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # numpy's, or torch's
            return _failure(request, f"{name}: needs too much memory; cut out the lens, or choose a simpler scene.")
        return _failure(request, f"{name}: cannot be searched ({type(error).__name__}); save the files again.")


def _failure(request: Mapping[str, Any], message: str) -> dict[str, Any]:
    return _head(request) | {"status": "error", "message": message}


def _head(request: Mapping[str, Any]) -> dict[str, Any]:
    query = request["query"]
    head = {"name": request["names"]["image"], "version": darklens.__version__}
    return head | {"scene": query["scene"], "perturber": query["perturber"]}


def _search(request: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[str, Any]:
    started = time.process_time()
    query = SearchQuery.model_validate(request["query"])
    if not query.z_lens < query.z_source:
        raise InputError(f"z_source ({query.z_source:g}) must be above z_lens ({query.z_lens:g}).")
    observation = _observation(query, paths, request["max_pixels"])
    options = SearchOptions(query.perturber, redshifts=Redshifts(query.z_lens, query.z_source))
    scene = specification.get(query.scene).scene()
    smooth = fit(observation, scene)
    result = find_perturbers(observation, scene, perturber=query.perturber, result=smooth, redshifts=options.redshifts)
    texts = search_row(result, time.process_time() - started)
    row: dict[str, Any] = {name: _number(float(text or "nan")) for name, text in texts.items() if name not in _TEXTS}
    theta_E, error = measures(result.smooth)["theta_E"]
    row |= {"detected": result.detected, "theta_E": theta_E, "theta_E_error": _number(error)}
    return _head(request) | {
        "status": "ok",
        "message": result.message,
        "summary": _summary(result),
        "notes": [threshold_sentences(options), mass_sentence(options)],
        "row": dict.fromkeys(_OPTIONAL) | row,
        "changes": list(observation.changes),
        "maps": _maps(result),
    }


def _observation(query: SearchQuery, paths: Mapping[str, Path], max_pixels: int) -> Observation:
    has_noise = query.background_rms is not None or query.exposure is not None
    files = {role: str(path) for role, path in paths.items()}
    inputs = Inputs(
        psf=files.get("psf"),
        noise_map=files.get("noise_map"),
        mask=files.get("mask"),
        pixel_scale=query.pixel_scale,
        image=query.image,
        flip_rows=query.flip_rows,
        psf_settings=PSFSpecification(fwhm=query.psf_fwhm),
        noise=NoiseSpecification(background_rms=query.background_rms, exposure=query.exposure) if has_noise else None,
        half_width=query.half_width,
    )
    n_rows = contents(paths["image"]).n_rows
    if n_rows is not None and n_rows > 1:
        raise InputError(f"{paths['image']} holds {n_rows} images; send one.")
    observation = read_observation(f"{paths['image']}{'' if n_rows is None else '#0'}", inputs)
    rows, columns = observation.image.shape
    if rows * columns > max_pixels:
        raise InputError(
            f"the image has {rows} x {columns} pixels, and this server searches at most {max_pixels}; cut out the "
            "lens, or give half_width."
        )
    return observation


def _summary(result: SearchResult) -> str:
    if result.message:
        return f"{result.message[0].upper()}{result.message[1:]}."
    numbers = f"delta chi2 {result.delta_chi2:.1f}, threshold {result.threshold:.4g}"
    if not result.detected:
        return f"No perturber is detected ({numbers})."
    best = result.perturbers[0]
    position = f"x = {best.x:.2f}, y = {best.y:.2f} arcsec"
    return f"A perturber of 10^{best.log10_mass:.2f} M_sun is detected at {position} ({numbers})."


def _maps(result: SearchResult) -> dict[str, dict[str, Any]]:
    gains, observation = result.gains, result.smooth.observation
    rows, columns = observation.image.shape
    scale = observation.pixel_scale
    corner = (-columns * scale / 2, -rows * scale / 2)
    step = float(gains.x[1] - gains.x[0])
    corner_of_gains = (float(gains.x[0]) - step / 2, float(gains.y[0]) - step / 2)

    def used(plane: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        return np.where(observation.used, plane, np.nan)

    detectable = gains.detectable(result.threshold)
    return {
        "image": _map(used(observation.image), "Image", "image units", corner, scale),
        "residual": _map(used(result.smooth.residual), "Residual of the smooth lens", _SIGMA, corner, scale),
        "residual_perturber": _map(used(result.best.residual), "Residual with the perturber", _SIGMA, corner, scale),
        "gain": _map(gains.gain, "Gain in chi2", "", corner_of_gains, step),
        "detectable": _map(detectable, "Detectable mass", "log10 M_sun", corner_of_gains, step),
    }


def _map(
    values: Float[np.ndarray, "h w"], label: str, unit: str, corner: tuple[float, float], step: float
) -> dict[str, Any]:
    """Return the content of a square `Map`, padded with NaN; `corner` is the lower left one, `step` the pixel scale."""
    height, width = values.shape
    side = max(height, width)
    below, before = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), np.nan, dtype="<f4")
    square[below : below + height, before : before + width] = np.where(np.isfinite(values), values, np.nan)
    low, high = (float(f(square)) if np.isfinite(square).any() else 0.0 for f in (np.nanmin, np.nanmax))
    x, y = corner[0] - before * step, corner[1] - below * step
    return {
        "label": label,
        "unit": unit,
        "shape": [side, side],
        "extent": [x, x + side * step, y, y + side * step],
        "min": low,
        "max": high,
        "data": base64.b64encode(square.tobytes()).decode(),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
