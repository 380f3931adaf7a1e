"""Are lenses of another pixel scale classified as well as native ones? `python benchmarks/resampling.py`.

The same lenses are simulated as the model knows them and as a detector with other pixels sees them: PSF in arcsec,
light and sky per area, and so the photons, stay alike; the noise is drawn anew. The second are read as a user's images
are, from FITS files with their pixel scale, and prepared, which resamples them. AUC and accuracy are compared lens by
lens, with DeLong's interval; area: the same after sharing out flux by area, which `prepare` did before.

Writes results/resampling.json.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from darklens import __version__
from darklens.bundle import BATCH_SIZE, Bundle
from darklens.data.prepare import prepare
from darklens.data.readers import read_image
from darklens.evaluation import delong
from darklens.evaluation.metrics import accuracy, class_auc
from darklens.files import write_json
from darklens.provenance import commit, hardware
from darklens.simulate import populations
from darklens.simulate.batch import simulate_batch

ROOT = Path(__file__).resolve().parent.parent
SEED = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lens_residual")
    parser.add_argument("--n", type=int, default=300, help="images, of all classes alike")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.04, 0.06], help="arcsec")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "resampling.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.load(given.model)
    name, side, scale = bundle.contract.data["population"], bundle.contract.n_pixels, bundle.contract.pixel_scale
    native = populations.get(name, ["stored=counts"])
    images, truth = simulate_batch(native, SEED, range(given.n))
    labels = truth["label"]
    base = judged(bundle, images, labels)
    rows = []
    for own in given.scales:
        area, wide = (own / scale) ** 2, int(np.ceil(side * scale / own - 1e-6))
        field = [f"field.n_pixels={wide + (wide - side) % 2}", f"field.pixel_scale={own}"]
        light = [f"source.amplitude={native.source.amplitude.value * area}", f"noise.sky={native.noise.sky * area}"]
        theirs, same = simulate_batch(populations.get(name, ["stored=counts", *field, *light]), SEED, range(given.n))
        assert np.array_equal(same["theta_E"], truth["theta_E"])
        ways = {"prepared": as_files(theirs, own, side, scale), "area": shared_out(theirs, side, scale / own)}
        for how, resampled in ways.items():
            found = judged(bundle, resampled, labels)
            drop = delong.difference(labels, [base["probabilities"]], [found["probabilities"]])[-1]
            fluxes = resampled.sum((1, 2, 3), dtype=np.float64)
            flux = float(np.abs(fluxes / inside(theirs, side * scale / own) - 1).max())
            rows.append(
                {"pixel_scale": own, "how": how, "auc_drop": drop["value"], "auc_drop_ci95": drop["ci95"]}
                | {"largest_relative_change_of_flux": flux}
                | {key: value for key, value in found.items() if key != "probabilities"}
            )
            print(rows[-1], flush=True)
    base.pop("probabilities")
    about = {"version": __version__, "commit": commit(), "hardware": hardware()}
    settings = {"schema": 1, "model": given.model, "population": name, "n": given.n, "seed": SEED}
    write_json(given.out, {**settings, "native": base, "resampled": rows, "provenance": about})


def as_files(images, own, side, scale):
    """Return the images as a user's files, read and prepared."""
    from astropy.io import fits

    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -own / 3600, "CDELT2": own / 3600}
    made = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lens.fits"
        for image in images[:, 0]:
            fits.PrimaryHDU(image, fits.Header(header)).writeto(path, overwrite=True)
            made.append(prepare(read_image(path), n_pixels=side, pixel_scale=scale).pixels)
    return np.stack(made)[:, None]


def shared_out(images, side, factor):
    n = images.shape[-1]
    edges, cells = n / 2 + factor * (np.arange(side + 1) - side / 2), np.arange(n)
    parts = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    return (parts @ images.astype(np.float64) @ parts.T).astype(np.float32)


def inside(images, length):
    """Return the flux of the central `length` pixels, parts of pixels by their area."""
    n = images.shape[-1]
    part = np.clip(np.minimum(np.arange(n) + 1, (n + length) / 2) - np.maximum(np.arange(n), (n - length) / 2), 0, 1)
    return np.einsum("bij,i,j->b", images[:, 0].astype(np.float64), part, part)


def judged(bundle, images, labels):
    parts = [bundle.classify(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
    probabilities = np.concatenate([part.probabilities for part in parts])
    found = {
        "probabilities": probabilities,
        "accuracy": float(accuracy(labels, probabilities)),
        "macro_auc": float(np.mean(class_auc(labels, probabilities))),
        "log_loss": float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)).mean()),
    }
    if "chi2" in parts[0].findings:
        chi2 = np.concatenate([np.array(part.findings["chi2"], dtype=float) for part in parts])
        found["median_chi2_of_no"] = float(np.median(chi2[labels == 0]))
    return found


if __name__ == "__main__":
    main()
