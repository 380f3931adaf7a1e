import base64
import re

import numpy as np
import pytest

from darklens.fit import png
from darklens.report import charts, figures, strata_section
from darklens.report.html import Picture, Section, Table, page

PNG = b"\x89PNG\r\n\x1a\n"


RATE = {"value": 0.5, "ci95": [0.4, 0.6]}
STRATUM = {
    "parameter": "line mass",
    "unit": "arcsec^2",
    "class": "vort",
    "false_alarms": {"value": 0.0123, "ci95": [0.01, 0.02]},
    "bins": [
        {"low": x, "high": 2 * x, "median": 1.5 * x, "n": 30, "recall": {"vort": {**RATE, "value": r}}, "auc": RATE}
        for x, r in ((0.01, 0.4), (0.02, 0.7))
    ],
    "limits": [
        {"recall": 0.5, "value": 0.018, "ci95": [None, 0.02], "reached": "inside"},
        {"recall": 0.9, "value": None, "ci95": [None, None], "reached": "above the largest"},
    ],
}


def test_limits_outside_the_bins_are_bounds():
    (section,) = strata_section.sections([STRATUM], ["no", "sphere", "vort"])
    limits = [row[-2:] for row in section.tables[0].rows]
    assert limits == [["0.018 [< 0.015, 0.02]", "0.0123"], ["above 0.03", "0.0123"]]
    assert "vort 0.400" in section.pictures[0].alt and "vort 0.700" in section.pictures[0].caption
    absent = {**STRATUM, "class": None, "bins": [{**row, "recall": {"vort": None}} for row in STRATUM["bins"]]}
    assert strata_section.sections([absent], ["no", "sphere", "vort"])[0].title == "Recall by lens and image parameters"
    assert strata_section.sections([], []) == []


def test_pictures_have_captions_with_their_numbers():
    html = page("t", lead="l", sections=[Section("s", pictures=[Picture(PNG, "alt", "AUC 0.9"), Picture(PNG, "b")])])
    assert html.count("<figure>") == 2 and html.count("<figcaption>AUC 0.9</figcaption>") == 1
    assert html.count("<figcaption>") == 1


def test_the_page_is_self_contained_and_escapes_text():
    hostile = "<script>alert(1)</script>"
    html = page(
        hostile,
        lead=hostile,
        warnings=[hostile],
        sections=[Section(hostile, hostile, [Table([hostile], [[hostile]])], [Picture(PNG, f'"{hostile}')])],
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 9  # the title occurs twice
    assert not re.search(r"(src|href)=\"(?!data:)", html) and "@import" not in html
    assert "http" not in re.sub(r'"data:[^"]*"', "", html)  # base64 may contain any letters
    assert base64.b64encode(PNG).decode() in html
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", html))


@pytest.mark.parametrize("name", ["$x^$", r"a$\frac{$", "$"])
def test_names_are_no_formulas(name):
    auc = {"macro": {"value": 0.9, "ci95": [0.8, 0.95]}}
    assert figures.to_png(charts.auc_bars([{"name": name, "auc": auc}])).startswith(b"\x89PNG")


def test_figures_are_png_and_reproducible(monkeypatch):
    monkeypatch.setattr(png, "_DPI", 40)
    g = np.random.default_rng(0)
    labels, p = np.arange(60) % 3, g.dirichlet([1, 1, 1], 60)
    classes = ["no", "sphere", "vort"]
    images = list(g.random((4, 8, 8)))
    rows = [
        {"stage": str(s), "task": "classify", "epoch": str(e), "train_loss": "1", "val_loss": "2"}
        for s in (0, 1)
        for e in (0, 1)
    ]
    metric = {"value": 0.9, "ci95": [0.8, 0.95]}

    def make():
        return [
            charts.roc(labels, p, classes),
            charts.calibration(np.array([[0.4, 0.5, 30], [0.8, 0.7, 30]])),
            charts.confusion(np.array([[5, 1], [2, 4]]), ["a", "b"]),
            charts.learning_curves(rows),
            figures.gallery(images, list("abcd"), pixel_scale=0.1),
            charts.precision_recall(labels, p, classes),
            charts.risk_coverage(labels == p.argmax(1), p.max(1)),
            charts.stratum(STRATUM, classes),
            charts.differences([{"first": "a", "second": "b", "accuracy": metric, "auc": {"macro": metric}}]),
            charts.auc_bars([{"name": "a", "auc": {"macro": metric}}, {"name": "b", "auc": {"macro": metric}}]),
        ]

    made, repeated = make(), make()
    for figure, twin in zip(made, repeated, strict=True):
        first = figures.to_png(figure)
        assert first.startswith(PNG) and len(first) > 1000
        assert figures.to_png(twin) == first
    assert len(made[3].axes) == 2
