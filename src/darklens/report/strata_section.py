"""Sections of the report on performance by true parameter: detection limits, and recall by lens and image."""

from collections.abc import Sequence
from typing import Any

from darklens.report import charts, figures
from darklens.report.html import Picture, Section, Table
from darklens.report.sections import percent


def sections(strata: Sequence[dict[str, Any]], classes: Sequence[str]) -> list[Section]:
    """Return a section on substructure and one on the lens and the image; neither without true parameters.

    Args:
        strata: As `darklens.evaluation.strata.stratify` returns them.
        classes: All classes.
    """
    of_class = [stratum for stratum in strata if stratum["class"]]
    of_all = [stratum for stratum in strata if not stratum["class"]]
    parts = []
    if of_class:
        limits = [
            [
                f"{stratum['parameter']}, {stratum['unit']}",
                stratum["class"],
                percent(limit["recall"]),
                _limit(limit, stratum),
                f"{stratum['false_alarms']['value']:.4f}",
            ]
            for stratum in of_class
            for limit in stratum.get("limits", [])
        ]
        tables = [_ends(of_class)]
        if limits:
            tables.insert(0, Table(["mass", "class", "recall", "detection limit", "false-alarm rate"], limits))
        text = (
            "Recall by the true mass or size of the substructure, in bins of equal numbers of images. The detection "
            "limit is the mass at which the recall rises through 50 or 90 %. False-alarm rate: the fraction of images "
            "of other classes that are assigned to this one. Error bars: 95 % intervals."
        )
        pictures = [_picture(stratum, classes) for stratum in of_class]
        parts.append(Section("Detection limit", text, tables=tables, pictures=pictures))
    if of_all:
        text = "Recall of each class by true parameters of the lens and the image. Error bars: 95 % intervals."
        pictures = [_picture(stratum, classes) for stratum in of_all]
        parts.append(Section("Recall by lens and image parameters", text, tables=[_ends(of_all)], pictures=pictures))
    return parts


def _picture(stratum: dict[str, Any], classes: Sequence[str]) -> Picture:
    numbers = "; ".join(
        f"{row['median']:.4g}: "
        + ", ".join(f"{name} {rate['value']:.3f}" for name, rate in row["recall"].items() if rate)
        for row in stratum["bins"]
    )
    alt = f"Recall by {stratum['parameter']}: {numbers}."
    first, last = (f"{row['median']:.3g}: {_rates(row)}" for row in (stratum["bins"][0], stratum["bins"][-1]))
    return Picture(figures.to_png(charts.stratum(stratum, classes)), alt, f"Recall at {first}; at {last}.")


def _ends(strata: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for stratum in strata:
        name = f"{stratum['parameter']}, {stratum['unit']}" if stratum["unit"] else stratum["parameter"]
        cells = []
        for row in (stratum["bins"][0], stratum["bins"][-1]):
            auc = "-" if row["auc"] is None else f"{row['auc']['value']:.4f}"
            cells += [f"{row['low']:.3g} to {row['high']:.3g}", _rates(row), auc]
        rows.append([name, *cells])
    return Table(["parameter", "lowest bin", "recall", "AUC", "highest bin", "recall", "AUC"], rows)


def _rates(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {rate['value']:.3f}" for name, rate in row["recall"].items() if rate)


def _limit(limit: dict[str, Any], stratum: dict[str, Any]) -> str:
    smallest, largest = stratum["bins"][0]["median"], stratum["bins"][-1]["median"]
    low, high = limit["ci95"]
    if limit["value"] is None:
        return f"below {smallest:.3g}" if limit["reached"] == "below the smallest" else f"above {largest:.3g}"
    ends = f"{'< ' + format(smallest, '.3g') if low is None else format(low, '.3g')}"
    return f"{limit['value']:.3g} [{ends}, {'> ' + format(largest, '.3g') if high is None else format(high, '.3g')}]"
