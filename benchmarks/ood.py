"""Does the score of a bundle tell unfamiliar images from familiar ones? `python benchmarks/ood.py MODEL`.

Each row is a set of images that differ from `common-test-i` in one thing, or in everything; its AUROC is against fresh
images of the population. Writes results/common-test-i/ood/{ood.json,ood.md}, an entry for each recipe. Real HST images
come from ../shared/realdata and are left out where that folder is absent.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from darklens import __version__, populations, rng
from darklens.bundle import BATCH_SIZE, Bundle
from darklens.evaluation import ood
from darklens.evaluation.metrics import binary_auc
from darklens.files import read_json, write_json, write_text
from darklens.provenance import commit, hardware
from darklens.simulate.batch import simulate_batch

ROOT = Path(__file__).resolve().parent.parent
HST = ROOT.parent / "shared" / "realdata" / "hst-lenses"
SEED, SIZE, SCALE = 901, 150, 0.05

Images = np.ndarray  # (n, 1, 150, 150) float32


def simulated(name: str, *overrides: str) -> Callable[[int], Images]:
    return lambda n: simulate_batch(populations.get(name, overrides), SEED, range(n))[0]


def unlensed(*overrides: str) -> Callable[[int], Images]:
    """Images of class `no`, every third, behind a lens too weak to see."""
    population = populations.get("common-test-i", ["lens.theta_E=0.001", "lens.gamma=0", *overrides])
    return lambda n: simulate_batch(population, SEED, range(0, 3 * n, 3))[0]


def white_noise(n: int) -> Images:
    return rng.generator(SEED, "noise").normal(size=(n, 1, SIZE, SIZE)).astype(np.float32)


def blank_sky(n: int) -> Images:
    return rng.generator(SEED, "sky").poisson(10, (n, 1, SIZE, SIZE)).astype(np.float32)


def turned(n: int) -> Images:
    return np.ascontiguousarray(np.rot90(simulated("common-test-i")(n), axes=(2, 3)))


def shuffled(n: int) -> Images:
    """The population's images with their pixels in a random order: the same histogram."""
    images = simulated("common-test-i")(n)
    order = rng.generator(SEED, "pixels").permutation(SIZE * SIZE)
    return images.reshape(n, 1, -1)[..., order].reshape(images.shape)


def hst_lenses(n: int) -> Images:
    """Every cutout resampled to 0.05 arcsec, set into noise of its background, in its four quarter turns."""
    import h5py
    from scipy.ndimage import zoom

    g, found = rng.generator(SEED, "hst"), []
    for path in sorted(HST.glob("image_*.h5")):
        with h5py.File(path) as file:
            image, rms, transform = (file[k][()] for k in ("image_data", "background_rms", "transform_pix2angle"))
        factor = float(np.sqrt(abs(np.linalg.det(transform)))) / SCALE
        image = zoom(image, factor, order=1)
        canvas = g.normal(0, rms * min(1, 1 / factor), (SIZE, SIZE))
        start = (SIZE - len(image)) // 2
        canvas[start : start + len(image), start : start + len(image)] = image
        found += [np.rot90(canvas, turn) for turn in range(4)]
    return np.stack(found)[:n, None].astype(np.float32)


CENTRE = "{kind: cartesian, x: 0, y: 0}"
LIGHT = f"lens_light={{kind: sersic, amplitude: 20, R_e: 0.5, n: 3, q: 0.8, angle: 0, position: {CENTRE}}}"
ELLIPTICAL = [f"lens.{e}={{kind: normal, mean: 0, sigma: 0.05, low: -0.2, high: 0.2}}" for e in ("e1", "e2")]
OTHER_GALAXIES = ["source.R_e={kind: uniform, low: 0.2, high: 1.2}", "source.n={kind: uniform, low: 0.7, high: 4}"]
ROWS: dict[str, Callable[[int], Images]] = {
    "no lens: galaxies like the sources": unlensed(),
    "no lens: galaxies of other sizes and profiles": unlensed(*OTHER_GALAXIES),
    "white noise": white_noise,
    "blank sky (a constant image is refused by the reader)": blank_sky,
    "pixels in random order": shuffled,
    "turned by a quarter": turned,
    "common-test-i-isotropic": simulated("common-test-i-isotropic"),
    "deeplense-model-i": simulated("deeplense-model-i"),
    "realistic-hst, 150 of its own pixels": simulated("realistic-hst", f"field.n_pixels={SIZE}"),
    "realistic-euclid, 150 of its own pixels": simulated("realistic-euclid", f"field.n_pixels={SIZE}"),
    "realistic-rubin, 150 of its own pixels": simulated("realistic-rubin", f"field.n_pixels={SIZE}"),
    "HST images of real lenses": hst_lenses,
    "PSF 10 % wider": simulated("common-test-i", "psf.sigma=0.0957"),
    "PSF 10 % narrower": simulated("common-test-i", "psf.sigma=0.0783"),
    "sky 20 % brighter": simulated("common-test-i", "noise.sky=12"),
    "sky 20 % darker": simulated("common-test-i", "noise.sky=8"),
    "elliptical lenses (e1, e2 of 0.05)": simulated("common-test-i", *ELLIPTICAL),
    "light of the lens": simulated("common-test-i", LIGHT),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a run, a bundle, or the name of a shipped model")
    parser.add_argument("--n", type=int, default=99, help="images a row")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "common-test-i" / "ood")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.load(given.model)
    calibration = bundle.contract.calibration
    if bundle.ood_reference is None or calibration is None or calibration.ood is None:
        raise SystemExit(f"{given.model} does not know what is familiar; train it again, or use `darklens calibrate`.")
    familiar = scored(bundle, simulated("common-test-i")(given.n))
    rows = []
    for name, make in ROWS.items():
        if make is hst_lenses and not HST.is_dir():
            print(f"{name}: left out, {HST} is absent")
            continue
        found = scored(bundle, make(given.n))
        rows.append({"name": name, "n": len(found["score"]), **row(found, familiar, calibration.ood.p99)})
        print(f"{name}: {rows[-1]['auroc']:.4f}", flush=True)
    out = given.out / "ood.json"
    entry = {
        "n": given.n,
        "beyond_p99": float((familiar["score"] > calibration.ood.p99).mean()),
        "rows": rows,
        "data": bundle.contract.data,
        "threshold_images": calibration.threshold_images,
        "threshold_source": calibration.images,
        "provenance": {"version": __version__, "commit": commit(), "hardware": hardware()},
    }
    models = {**(read_json(out)["models"] if out.exists() else {}), bundle.contract.recipe: entry}
    write_json(out, {"schema": 1, "population": "common-test-i", "models": models})
    write_text(given.out / "ood.md", table(models))


def scored(bundle: Bundle, images: Images) -> dict[str, np.ndarray]:
    """Return the score of each image, and of a system that fits lenses the chi2 per block of the best hypothesis."""
    assert bundle.ood_reference is not None
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(images), BATCH_SIZE):
        found = bundle.classify(images[start : start + BATCH_SIZE])
        part = {"score": ood.scores(bundle.ood_reference, found.ood_features)}
        if "chi2_per_pixel" in found.findings:
            chi2 = [
                np.array(found.findings[name], dtype=float) for name in ("chi2_per_pixel_line", "chi2_per_pixel_points")
            ]
            part |= {"chi2": np.minimum(*chi2), "failed": np.array(found.findings["fit"]) != "ok"}
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def row(found: dict[str, np.ndarray], familiar: dict[str, np.ndarray], limit: float) -> dict[str, float]:
    strange = np.repeat([True, False], [len(found["score"]), len(familiar["score"])])

    def auroc(name: str) -> float:
        return binary_auc(strange, np.concatenate([found[name], familiar[name]]))

    values = {"auroc": auroc("score"), "beyond_p99": float((found["score"] > limit).mean())}
    if "chi2" in found:
        values |= {"auroc_chi2": auroc("chi2"), "fit_failed": float(found["failed"].mean())}
    return values


def table(models: dict[str, dict]) -> str:
    lines = [
        "# Unfamiliar images",
        "",
        "AUROC of `ood_score` against fresh images of `common-test-i`: 0.5 is blind, 1 tells all apart. Beyond: the "
        "part that `predict` marks `ood: yes`, which 1 % of familiar images should be. Rows below 0.95 are images on "
        "which a model may be wrong without a mark. Made by `python benchmarks/ood.py MODEL`.",
    ]
    for recipe, found in models.items():
        with_fit = "auroc_chi2" in found["rows"][0]
        further = ["AUROC of chi2 alone", "fit failed"] if with_fit else []
        lines += [
            "",
            f"## {recipe}",
            "",
            f"{found['n']} familiar images, {found['beyond_p99']:.1%} of them beyond; thresholds from "
            f"{found['threshold_images']} others ({found['threshold_source']}); trained on "
            f"`{found['data']['population']}`; commit {found['provenance']['commit']}.",
            "",
            f"| images | n | AUROC | beyond |{''.join(f' {name} |' for name in further)}",
            "| --- | --- | --- | --- |" + " --- |" * len(further),
        ]
        for r in found["rows"]:
            cells = [r["name"], str(r["n"]), f"{r['auroc']:.3f}", f"{r['beyond_p99']:.0%}"]
            cells += [f"{r['auroc_chi2']:.3f}", f"{r['fit_failed']:.0%}"] if with_fit else []
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
