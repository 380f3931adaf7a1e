"""Section of the report on a system that reconstructs images."""

from typing import Any

import numpy as np

from darklens.bundle import Bundle
from darklens.data.noise_estimate import noise_variance
from darklens.data.store import Store
from darklens.evaluation.compare import format_metric
from darklens.report import figures
from darklens.report.html import Picture, Section, Table

_METRICS = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "chi2_per_pixel": "chi2 per pixel",
}


def sections(evaluation: dict[str, Any], bundle: Bundle, store: Store) -> tuple[list[Section], str]:
    """Return the section, and the lead sentence of the report."""
    metrics = evaluation["reconstruction"]
    lead = (
        f"PSNR {format_metric(metrics['psnr_db'])} dB, SSIM {format_metric(metrics['ssim'])}, "
        f"chi2 per pixel {format_metric(metrics['chi2_per_pixel'])} on {evaluation['n']} images."
    )
    chosen = [int(np.flatnonzero(store.labels == i)[0]) for i in np.unique(store.labels)]
    received, output = bundle.run(store.images(chosen))
    deviation = (received - output) / noise_variance(received).sqrt()
    planes = [part[:, 0].cpu().numpy() for part in (received, output, deviation)]
    names = [store.classes[store.labels[i]] for i in chosen]
    scale = store.index.pixel_scale * bundle.contract.preprocess.bin
    picture = figures.to_png(figures.reconstructions(planes[0], planes[1], planes[2], names, pixel_scale=scale))
    alt = "An image of each class, its reconstruction, and the residual in units of the noise."
    table = Table(
        ["metric", "mean over images"],
        [[label, format_metric(metrics[name])] for name, label in _METRICS.items()],
    )
    text = (
        "PSNR: -10 log10(MSE) for images in [0, 1]. SSIM: structural similarity, 1 for equal images. chi2 per pixel: "
        "the squared residual in units of the noise, which is estimated from each image; 1 for the noise-free image."
    )
    return [Section("Reconstruction", text, tables=[table], pictures=[Picture(picture, alt)])], lead
