"""Pages of fits and searches of telescope images: a summary, a table, and the figure of each lens."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence

from darklens.fit.perturber_sentences import mass_sentence, threshold_sentences
from darklens.fit.perturber_table import SearchOptions
from darklens.fit.resumable_table import Row
from darklens.report.html import Picture, Section, Table, page

_NOT_TRUSTED = "not to be trusted"


def fit_page(rows: Sequence[Row], settings: Mapping[str, str]) -> str:
    """Return the page of a table of fits, the worst fit first.

    Args:
        rows: Rows with figures.
        settings: Names and values to list, such as the scene.
    """
    table = (
        ["image", "theta_E, arcsec", "chi2 per pixel", "converged", "trusted"],
        lambda row: [
            _with_error(row, "theta_E"),
            _number(row, "chi2_per_pixel"),
            row.columns["converged"],
            _NOT_TRUSTED if row.columns["message"] else "yes",
        ],
    )
    text = (
        "theta_E is the effective Einstein radius: that of the circle with the mass of the ellipse inside which the "
        "mean convergence of the main lens is one. Errors are standard deviations. chi2 per pixel is close to 1 if "
        "model and noise map are right. The worst fit is first. Figures: data, model, residual in units of the noise, "
        "and source."
    )
    return _page("Lens fits", rows, "fitted", "", Section("Fits", text), table, _fit_caption, _badness, settings)


def search_page(rows: Sequence[Row], options: SearchOptions, settings: Mapping[str, str]) -> str:
    """Return the page of a table of searches, the largest ratio of delta chi2 and threshold first.

    Args:
        rows: Rows with figures.
        options: How the images were searched.
        settings: Names and values to list, such as the scene.
    """
    table = (
        ["image", "detected", "delta chi2", "threshold", "x, y (arcsec)", "log10 M / M_sun", "chi2 per pixel"],
        lambda row: [
            _NOT_TRUSTED if row.columns["message"] else row.columns["detected"],
            _number(row, "delta_chi2"),
            _number(row, "threshold"),
            _position(row),
            _with_error(row, "log10_mass"),
            f"{_number(row, 'chi2_per_pixel_smooth')}, {_number(row, 'chi2_per_pixel')}",
        ],
    )
    detected = sum(row.columns.get("detected") == "yes" for row in rows)
    lead = f" Perturbers detected in {detected}."
    text = (
        f"{threshold_sentences(options)} {mass_sentence(options)} These hold for all images. chi2 per pixel is that "
        "without and with the perturber. The largest delta chi2 relative to its threshold is first."
    )
    section = Section("Searches", text)
    return _page("Search for perturbers", rows, "searched", lead, section, table, _search_caption, _weakness, settings)


def _page(
    title: str,
    rows: Sequence[Row],
    verb: str,
    lead: str,
    section: Section,
    table: tuple[list[str], Callable[[Row], list[str]]],
    caption: Callable[[Row], str],
    order: Callable[[Row], float],
    settings: Mapping[str, str],
) -> str:
    """Return a page: summary, table, doubtful and bad images, figures, settings."""
    header, cells = table
    good = sorted((row for row in rows if not row.message), key=order)
    doubtful, bad = [row for row in good if row.columns["message"]], [row for row in rows if row.message]
    anchors = {id(row): f"image-{number}" for number, row in enumerate(good, 1)}
    doubts = f", {len(doubtful)} of these {_NOT_TRUSTED}" if doubtful else ""
    lead = f"{len(good)} of {len(rows)} image{'' if len(rows) == 1 else 's'} {verb}{doubts}.{lead}"
    sections = [
        Section(
            section.title,
            section.text,
            [Table(header, [[row.label, *cells(row)] for row in good], list(anchors.values()))] if good else [],
        )
    ]
    for heading, group in ((_NOT_TRUSTED.capitalize(), doubtful), (f"Not {verb}", bad)):
        if group:
            links = [anchors.get(id(row), "") for row in group]
            cells_of_group = [[row.label, row.message or row.columns["message"]] for row in group]
            reasons = Table(["image", "reason"], cells_of_group, links)
            sections.append(Section(heading, tables=[reasons]))
    for row in good:
        notes = (row.columns["message"], row.columns.get("changes", ""))
        picture = Picture(base64.b64decode(row.figure), f"Maps of {row.label}. {caption(row)}", caption(row))
        text = " ".join(f"{note[0].upper()}{note[1:]}." for note in notes if note)
        sections.append(Section(row.label, text, pictures=[picture], anchor=anchors[id(row)]))
    sections.append(
        Section("Settings", tables=[Table(["setting", "value"], [list(item) for item in settings.items()])])
    )
    return page(title, lead=lead, sections=sections)


def _fit_caption(row: Row) -> str:
    return f"theta_E = {_with_error(row, 'theta_E')} arcsec, chi2 per pixel {_number(row, 'chi2_per_pixel')}."


def _search_caption(row: Row) -> str:
    suffixes = ["", *(f"_{n}" for n in range(2, 11) if f"delta_chi2_{n}" in row.columns)]
    parts = [f"chi2 per pixel {_number(row, 'chi2_per_pixel_smooth')} without a perturber."]
    for suffix in suffixes:
        if row.columns.get(f"x{suffix}"):
            text = f"Delta chi2 {_number(row, f'delta_chi2{suffix}')} at x, y = {_position(row, suffix)} arcsec, "
            text += f"log10 M / M_sun = {_with_error(row, 'log10_mass', suffix)}"
            if f"concentration{suffix}" in row.columns:
                text += f", c200 = {_with_error(row, 'concentration', suffix)}"
            parts.append(f"{text}.")
    return " ".join(parts)


def _badness(row: Row) -> float:
    return -_value(row, "chi2_per_pixel")


def _weakness(row: Row) -> float:
    return -_value(row, "delta_chi2") / (_value(row, "threshold") or 1.0)


def _value(row: Row, name: str) -> float:
    text = row.columns.get(name, "")
    return float(text) if text else -math.inf


def _number(row: Row, name: str) -> str:
    text = row.columns.get(name, "")
    return f"{float(text):.4g}" if text else "-"


def _position(row: Row, suffix: str = "") -> str:
    x, y = (row.columns.get(f"{name}{suffix}", "") for name in ("x", "y"))
    return f"{float(x):.2f}, {float(y):.2f}" if x and y else "-"


def _with_error(row: Row, name: str, suffix: str = "") -> str:
    """Return value ± error, both rounded to two digits of the error."""
    value, error = (row.columns.get(f"{column}{suffix}", "") for column in (name, f"{name}_error"))
    if not value:
        return "-"
    if not error or not float(error) > 0:
        return f"{float(value):.4g}"
    decimals = min(8, max(0, 1 - math.floor(math.log10(float(error)))))
    return f"{float(value):.{decimals}f} ± {float(error):.{decimals}f}"
