"""Fits of telescope images beside lenstronomy's own: elliptical power law, shear and one Sersic source, image PSF.

    python benchmarks/bench_scene_fit.py [--images 20] [--peer-images 2] [--json results/bench.json]

lenstronomy renders the images, of 64 x 64 and 100 x 100 pixels. Both start without knowledge of the lens: darklens with
the starts that it draws itself, lenstronomy with a particle swarm within the ranges of the population, then a simplex
from its best particle, amplitudes solved for. Both run on one thread, one lens after the other. The ratio is that of
processor time for one lens; chi2 per degree of freedom of all is reported. Compilation is timed apart.
"""

import argparse
import contextlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lenstronomy.SimulationAPI.sim_api import SimAPI
from lenstronomy.Workflow.fitting_sequence import FittingSequence
from record import record
from scipy.ndimage import gaussian_filter

from darklens import __version__, fit, provenance
from darklens.files import write_json
from darklens.memory import keep_freed_memory
from darklens.scene.compiled import CompiledScene
from darklens.scene.observation import Observation
from darklens.scene.psf import PSF
from darklens.scene.scene import Scene

SCALE, SEEING = 0.08, 0.15  # arcsec
MODEL = {"lens_model_list": ["EPL", "SHEAR"], "source_light_model_list": ["SERSIC_ELLIPSE"]}
BAND = {
    "pixel_scale": SCALE,
    "exposure_time": 5400.0,
    "magnitude_zero_point": 25.96,
    "read_noise": 4.0,
    "ccd_gain": 2.5,
    "sky_brightness": 22.3,
    "seeing": SEEING,
    "num_exposures": 1,
    "psf_type": "GAUSSIAN",
}
SWARM = {"particles": 100, "iterations": 150, "simplex": 1500}
# Low, high, and start and scatter of the swarm, of the parameters of lens, shear and source.
RANGES = [
    {
        "theta_E": (0.5, 1.6, 1.0, 0.3),
        "gamma": (1.4, 2.6, 2.0, 0.2),
        "e1": (-0.4, 0.4, 0.0, 0.15),
        "e2": (-0.4, 0.4, 0.0, 0.15),
        "center_x": (-0.2, 0.2, 0.0, 0.05),
        "center_y": (-0.2, 0.2, 0.0, 0.05),
    },
    {"gamma1": (-0.2, 0.2, 0.0, 0.05), "gamma2": (-0.2, 0.2, 0.0, 0.05)},
    {
        "R_sersic": (0.02, 1.0, 0.2, 0.1),
        "n_sersic": (0.5, 5.0, 1.5, 0.7),
        "e1": (-0.4, 0.4, 0.0, 0.15),
        "e2": (-0.4, 0.4, 0.0, 0.15),
        "center_x": (-0.6, 0.6, 0.0, 0.15),
        "center_y": (-0.6, 0.6, 0.0, 0.15),
    },
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file too")
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 100])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--peer-images", type=int, default=2)
    parser.add_argument("--swarm", type=float, default=1.0, help="size of lenstronomy's fit; less for a smoke test")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    scene = Scene.from_yaml("epl-shear")
    started = time.perf_counter()
    if not options.eager:
        CompiledScene(scene)
    result: dict[str, Any] = {"schema": 1, "compile_s": time.perf_counter() - started}
    for pixels in options.pixels:
        result[str(pixels)] = compare(scene, pixels, options)
    result["provenance"] = {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()}
    print(result)
    if options.out:
        write_json(options.out, result)
    if options.json:
        ratios = [result[str(pixels)]["vs_lenstronomy"] for pixels in options.pixels]
        record(options.json, "fit", {"realistic_vs_lenstronomy": min(ratios), "realistic": result})


def compare(scene: Scene, pixels: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds a lens and chi2 of both."""
    ours: list[float] = []
    chi2: list[float] = []
    theirs: list[float] = []
    their_chi2: list[float] = []
    for i in range(options.images):
        observation, image, noise, psf = lens(i, pixels)
        started = time.process_time()
        result = fit(observation, scene, compiled=not options.eager)
        ours.append(time.process_time() - started)
        chi2.append(result.chi2_per_pixel)
        if i < options.peer_images:
            started = time.process_time()
            their_chi2.append(lenstronomy_fit(image, noise, psf, options.swarm))
            theirs.append(time.process_time() - started)
    return {
        "seconds": float(np.median(ours)),
        "lenses_per_minute": 60 / float(np.mean(ours)),
        "chi2": chi2,
        "lenstronomy_seconds": float(np.median(theirs)),
        "lenstronomy_chi2": their_chi2,
        "vs_lenstronomy": float(np.median(theirs) / np.median(ours)),
    }


def lens(i: int, pixels: int) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray]:
    """Return an observation, and its image, noise map and PSF, of a lens that lenstronomy renders."""
    draws = np.random.default_rng([11, i])
    theta_E = draws.uniform(0.8, 1.2)
    angle = draws.uniform(0, 2 * np.pi, 3)
    e, shear, offset = draws.uniform(0, 0.25), draws.uniform(0, 0.05), theta_E * draws.uniform(0.05, 0.3)
    epl = {"theta_E": theta_E, "gamma": draws.uniform(1.6, 2.4), "center_x": 0.0, "center_y": 0.0}
    epl |= {"e1": e * np.cos(angle[0]), "e2": e * np.sin(angle[0])}
    source = {"amp": draws.uniform(60, 200), "R_sersic": draws.uniform(0.1, 0.3), "n_sersic": draws.uniform(0.8, 2.5)}
    source |= {"e1": draws.uniform(-0.2, 0.2), "e2": draws.uniform(-0.2, 0.2)}
    source |= {"center_x": offset * np.cos(angle[2]), "center_y": offset * np.sin(angle[2])}
    external = {"gamma1": shear * np.cos(angle[1]), "gamma2": shear * np.sin(angle[1])}
    sim = SimAPI(num_pix=pixels, kwargs_single_band=BAND, kwargs_model=MODEL)
    model = sim.image_model_class({"supersampling_factor": 1}).image([epl, external], [source])
    noise = np.hypot(sim.background_noise, sim.flux_noise(model))
    image = model + noise * draws.normal(size=model.shape)
    point = np.zeros((31, 31))
    point[15, 15] = 1
    psf = gaussian_filter(point, SEEING / SCALE / (2 * np.sqrt(2 * np.log(2))), mode="constant", truncate=5)
    psf /= psf.sum()
    observation = Observation.of(image, noise_map=noise, psf=PSF.image(psf, pixel_scale=SCALE), pixel_scale=SCALE)
    return observation, image, noise, psf


def lenstronomy_fit(image: np.ndarray, noise: np.ndarray, psf: np.ndarray, size: float) -> float:
    """Return chi2 per degree of freedom of lenstronomy's fit."""
    half = SCALE * (len(image) - 1) / 2
    data = {
        "image_data": image,
        "noise_map": noise,
        "ra_at_xy_0": -half,
        "dec_at_xy_0": -half,
        "transform_pix2angle": SCALE * np.eye(2),
    }
    numerics = {"supersampling_factor": 1, "supersampling_convolution": False}
    bands = [[data, {"psf_type": "PIXEL", "kernel_point_source": psf}, numerics]]
    columns = [[{k: v[j] for k, v in group.items()} for group in RANGES] for j in range(4)]
    low, high, start, scatter = columns
    fixed: list[list[dict[str, float]]] = [[{}, {"ra_0": 0.0, "dec_0": 0.0}], [{}]]
    parameters = {
        "lens_model": [start[:2], scatter[:2], fixed[0], low[:2], high[:2]],
        "source_model": [start[2:], scatter[2:], fixed[1], low[2:], high[2:]],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        sequence = FittingSequence(
            {"multi_band_list": bands, "multi_band_type": "single-band"}, MODEL, {}, {}, parameters, verbose=False
        )
        particles, iterations = (max(2, int(size * SWARM[k])) for k in ("particles", "iterations"))
        sequence.fit_sequence(
            [
                ["PSO", {"sigma_scale": 1.0, "n_particles": particles, "n_iterations": iterations}],
                ["SIMPLEX", {"n_iterations": max(2, int(size * SWARM["simplex"]))}],
            ]
        )
        chi2 = -2 * sequence.best_fit_likelihood()
    free = sum(len(group) for group in RANGES) + 1
    return float(chi2 / (image.size - free))


if __name__ == "__main__":
    main()
