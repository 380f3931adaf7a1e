"""The folders of `evaluate` and `compare`: JSON, tables, figures and the report."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from darklens.bundle import Bundle
from darklens.data.noise import noise_variance
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.evaluation import metrics
from darklens.evaluation.compare import Judged, compare, to_markdown, with_interval
from darklens.evaluation.evaluate import Result
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.files import atomic_path, read_json, write_json, write_text
from darklens.predict import Row, to_csv
from darklens.report import figures, maps
from darklens.report.html import Picture, Section, Table, page

_HISTORY = "metrics.csv"
_MEASURES = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "chi2_per_pixel": "chi2 per pixel",
}


def write_evaluation(out: Path, result: Result, bundle: Bundle, store: Store, *, run: Path) -> None:
    """Write eval.json, predictions.csv, figures and report.html into `out`.

    Args:
        out: Folder; files of an earlier evaluation in it are replaced.
        result: What `evaluate` found.
        bundle: The system, for pictures of what an autoencoder reproduces.
        store: The test images, for the gallery.
        run: The run folder, if it is one; its metrics.csv becomes the learning curves.
    """
    evaluation = result.evaluation
    sections, lead = (
        _reconstruction_sections(evaluation, bundle, store)
        if result.probabilities is None
        else _classification_sections(out, result, store)
    )
    if bundle.has_maps:
        sections.append(maps.section(bundle, store))
    history = _read_csv(run / _HISTORY) if (run / _HISTORY).exists() else []
    if history:
        picture = Picture(
            figures.to_png(figures.learning_curves(history)), "Training and validation loss by epoch, for each stage."
        )
        text = "The loss on the training images and on the tenth of them that was held out to choose the best epoch."
        sections.append(Section("Learning curves", text, pictures=[picture]))
    sections.append(_provenance(evaluation))
    name = evaluation["model"]["recipe"]
    write_text(
        out / "report.html",
        page(
            f"{name} on {evaluation['data']['population']}",
            lead=lead,
            sections=sections,
            warnings=evaluation["warnings"],
        ),
    )
    write_json(out / "eval.json", evaluation)


def write_comparison(out: Path, folders: Sequence[Path], *, predictions: Path | None = None) -> None:
    """Compare evaluation folders and write compare.json, compare.md and report.html into `out`.

    Raises:
        InputError: If a folder is not an evaluation of a classifier, or the test images differ.
    """
    systems = _with_different_names([read_judged(folder) for folder in folders], folders)
    warnings = [f"{s.name}: {warning}" for s in systems for warning in s.evaluation["warnings"]]
    comparison = compare(systems)
    classes = systems[0].evaluation["classes"]
    best = max(comparison["systems"], key=lambda s: s["auc"]["macro"]["value"])
    unseen = "" if warnings else " that none of them was trained on"
    lead = (
        f"{len(systems)} systems judged on the same {comparison['n']} images of {comparison['data']['population']}"
        f"{unseen}. Best: {best['name']}, macro AUC {with_interval(best['auc']['macro'])}."
    )
    table = Table(
        ["system", "parameters", "training", "macro AUC", *(f"AUC {c}" for c in classes), "accuracy", "ECE"],
        [
            [
                s["name"],
                f"{s['model']['parameters']:,}",
                f"{s['provenance']['train_images']:,} images, {s['provenance']['train_seconds']:.0f} s",
                *(with_interval(s["auc"][c]) for c in ["macro", *classes]),
                with_interval(s["accuracy"]),
                with_interval(s["ece"]),
            ]
            for s in comparison["systems"]
        ],
    )
    differences = Table(
        ["difference", "macro AUC", "p", "accuracy", "p"],
        [
            [
                f"{d['first']} - {d['second']}",
                with_interval(d["auc"]["macro"], signed=True),
                f"{d['auc']['macro']['p']:.3f}",
                with_interval(d["accuracy"], signed=True),
                f"{d['accuracy']['p']:.3f}",
            ]
            for d in comparison["differences"]
        ],
    )
    sections = [
        Section(
            "Results",
            "AUC: the chance that an image of the class gets a higher probability for it than an image of the others; "
            "0.5 is guessing. ECE: how far stated confidence is from the fraction that is right. Brackets: 95 % "
            "intervals from resampling the test images.",
            tables=[table],
            pictures=[
                Picture(figures.to_png(figures.auc_bars(comparison["systems"])), "AUC of each system with intervals.")
            ],
        ),
        Section(
            "Differences",
            "Both systems on the same resampled images. An interval that holds zero means that these images cannot "
            "tell the two apart. One training each: the spread between seeds is not in these intervals.",
            tables=[differences],
        ),
        *(_curves(s, classes) for s in systems),
    ]
    if predictions is not None:
        rows = _read_csv(predictions)
        if not rows:
            raise InputError(f"{predictions} holds no predictions.")
        text = "What a system says of single image files, whatever it says."
        sections.append(
            Section("Predictions", text, tables=[Table(list(rows[0]), [list(row.values()) for row in rows])])
        )
    sections += [_provenance(s.evaluation, f"Where {s.name} comes from") for s in systems]
    title = " and ".join(s["name"] for s in comparison["systems"])
    write_json(out / "compare.json", comparison)
    write_text(out / "compare.md", to_markdown(comparison))
    text = page(f"{title} on {comparison['data']['population']}", lead=lead, sections=sections, warnings=warnings)
    write_text(out / "report.html", text)


def _curves(system: Judged, classes: Sequence[str]) -> Section:
    labels, probabilities = system.labels, system.probabilities
    roc = _roc_picture(labels, probabilities, classes)
    counts = metrics.confusion(labels, probabilities)
    return Section(f"{system.name}: ROC and confusion", pictures=[roc, _confusion_picture(counts, classes)])


def _roc_picture(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Picture:
    areas = zip(classes, metrics.class_auc(labels, probabilities), strict=True)
    alt = f"ROC curves; areas {', '.join(f'{name} {area:.3f}' for name, area in areas)}."
    return Picture(figures.to_png(figures.roc(labels, probabilities, classes)), alt)


def _confusion_picture(counts: np.ndarray, classes: Sequence[str]) -> Picture:
    alt = f"Confusion matrix of {', '.join(classes)}, true classes in rows: {counts.tolist()}."
    return Picture(figures.to_png(figures.confusion(counts, classes)), alt)


def _classification_sections(out: Path, result: Result, store: Store) -> tuple[list[Section], str]:
    evaluation, labels, probabilities = result.evaluation, result.labels, result.probabilities
    assert probabilities is not None
    classes = evaluation["classes"]
    rows = [Row(name, [float(v) for v in p]) for name, p in zip(result.names, probabilities, strict=True)]
    write_text(out / "predictions.csv", to_csv(rows, classes, {**result.columns, "label": [classes[i] for i in labels]}))
    roc = _roc_picture(labels, probabilities, classes)
    reliability = figures.to_png(figures.calibration(metrics.reliability(labels, probabilities)))
    _write_bytes(out / "roc.png", roc.png)
    _write_bytes(out / "calibration.png", reliability)

    auc = evaluation["auc"]
    lead = (
        f"Macro AUC {with_interval(auc['macro'])}, accuracy {with_interval(evaluation['accuracy'])} "
        f"on {evaluation['n']} images."
    )
    recall = np.diag(evaluation["confusion"]) / np.sum(evaluation["confusion"], axis=1)
    numbers = Table(
        ["class", "AUC", "recall", "legacy AUC"],
        [
            [name, with_interval(auc[name]), f"{recall[i]:.3f}", _optional(evaluation["legacy_auc"][name])]
            for i, name in enumerate(classes)
        ]
        + [["all", with_interval(auc["macro"]), f"{recall.mean():.3f}", _optional(evaluation["legacy_auc"]["macro"])]],
    )
    return [
        Section(
            "Results",
            "AUC is one-vs-rest, from probabilities; brackets are 95 % intervals from resampling the test images. "
            "Legacy AUC is the 2024 study's metric, on which chance scores about 0.87: for its table only.",
            tables=[numbers],
            pictures=[roc, _confusion_picture(np.array(evaluation["confusion"]), classes)],
        ),
        Section(
            "Calibration",
            f"Expected calibration error {with_interval(evaluation['ece'])}, "
            f"log loss {with_interval(evaluation['nll'])}. "
            "Points below the line are predictions more confident than they are right. Resampling adds scatter to "
            "the bins, so the interval of the calibration error lies somewhat high.",
            pictures=[Picture(reliability, "Reliability diagram: accuracy against confidence.")],
        ),
        _examples(result, store),
    ], lead


def _examples(result: Result, store: Store) -> Section:
    """Show for each class the image the system is most sure of, and the mistake it is most sure of."""
    assert result.probabilities is not None
    labels, probabilities, classes = result.labels, result.probabilities, result.evaluation["classes"]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    chosen: list[tuple[int, str]] = []
    for right in (True, False):
        for i, name in enumerate(classes):
            members = np.flatnonzero((labels == i) & ((predicted == i) == right))
            if len(members):
                k = int(members[confidence[members].argmax()])
                verdict = "right" if right else f"called {classes[predicted[k]]}"
                chosen.append((k, f"{name}, {verdict}, {confidence[k]:.2f}"))
    images = _scaled(store.images([k for k, _ in chosen])[:, 0])
    picture = figures.gallery(images, [title for _, title in chosen], pixel_scale=store.index.pixel_scale)
    alt = "; ".join(f"image {result.names[k]}: {title}" for k, title in chosen)
    text = (
        "For each class the image the system is most sure of, then the mistake it is most sure of, with its confidence."
    )
    return Section("Examples", text, pictures=[Picture(figures.to_png(picture), alt)])


def _reconstruction_sections(evaluation: dict[str, Any], bundle: Bundle, store: Store) -> tuple[list[Section], str]:
    found = evaluation["reconstruction"]
    lead = (
        f"PSNR {with_interval(found['psnr_db'])} dB, SSIM {with_interval(found['ssim'])}, "
        f"chi2 per pixel {with_interval(found['chi2_per_pixel'])} on {evaluation['n']} images."
    )
    chosen = [int(np.flatnonzero(store.labels == i)[0]) for i in np.unique(store.labels)]
    received, output = bundle.run(store.images(chosen))
    deviation = (received - output) / noise_variance(received).sqrt()
    shown = [part[:, 0].cpu().numpy() for part in (received, output, deviation)]
    names = [store.classes[store.labels[i]] for i in chosen]
    scale = store.index.pixel_scale * bundle.contract.preprocess.bin
    picture = figures.to_png(figures.reconstructions(shown[0], shown[1], shown[2], names, pixel_scale=scale))
    alt = "An image of each class, its reconstruction, and their difference in units of the noise."
    table = Table(
        ["measure", "mean over images"],
        [[label, with_interval(found[name])] for name, label in _MEASURES.items()],
    )
    text = (
        "PSNR: -10 log10(MSE) for images in [0, 1]. SSIM: structural similarity, 1 for equal images. chi2 per pixel: "
        "the squared difference in units of the noise, which is estimated from each image; 1 is the noise-free image."
    )
    return [Section("Reconstruction", text, tables=[table], pictures=[Picture(picture, alt)])], lead


def _provenance(evaluation: dict[str, Any], title: str = "Where this comes from") -> Section:
    rows = [
        [f"{part}: {key.replace('_', ' ')}", str(value)]
        for part in ("data", "training_data", "provenance")
        for key, value in evaluation[part].items()
    ]
    return Section(title, tables=[Table(["item", "value"], rows)])


def read_judged(folder: Path) -> Judged:
    """Return what `darklens evaluate` wrote into a folder.

    Raises:
        InputError: If it is not the evaluation of a classifier, or damaged.
    """
    if not (folder / "eval.json").exists():
        raise InputError(f"{folder} holds no eval.json; give folders that `darklens evaluate` wrote.")
    evaluation = read_json(folder / "eval.json")
    if "classes" not in evaluation:
        raise InputError(f"{folder} is the evaluation of a system that does not classify; leave it out.")
    classes = evaluation["classes"]
    rows = _read_csv(folder / "predictions.csv")
    try:
        labels = np.array([classes.index(row["label"]) for row in rows])
        probabilities = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / 'predictions.csv'} is damaged; evaluate again.") from None
    return Judged(evaluation["model"]["recipe"], evaluation, labels, probabilities)


def _with_different_names(systems: Sequence[Judged], folders: Sequence[Path]) -> list[Judged]:
    """Add the folder to the names of systems of one recipe."""
    names = [system.name for system in systems]
    return [
        replace(system, name=f"{system.name} ({folder.name})") if names.count(system.name) > 1 else system
        for system, folder in zip(systems, folders, strict=True)
    ]


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _scaled(images: np.ndarray) -> list[np.ndarray]:
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return list((images - low) / np.maximum(high - low, np.finfo(images.dtype).tiny))


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
