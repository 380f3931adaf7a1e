"""What the report says of true parameters: where a system sees substructure and where it does not."""

from collections.abc import Sequence
from typing import Any

from darklens.report import charts, figures
from darklens.report.html import Picture, Section, Table


def sections(strata: Sequence[dict[str, Any]], classes: Sequence[str]) -> list[Section]:
    """Return a section on substructure and one on the lens and the image; none where nothing is known.

    Args:
        strata: As `darklens.evaluation.strata.stratify` returns them.
        classes: All classes.
    """
    of_class = [found for found in strata if found["class"]]
    of_all = [found for found in strata if not found["class"]]
    made = []
    if of_class:
        limits = [
            [
                f"{found['parameter']}, {found['unit']}",
                found["class"],
                f"{limit['recall']:.0%}".replace("%", " %"),
                _limit(limit, found),
                f"{found['false_alarms']['value']:.4f}",
            ]
            for found in of_class
            for limit in found.get("limits", [])
        ]
        tables = [_ends(of_class)]
        if limits:
            tables.insert(0, Table(["mass", "class", "found", "from", "false alarms"], limits))
        text = (
            "The fraction of images of a class that is recognised, by its true substructure, in bins of equal numbers "
            "of images. The detection limit is the mass at which it rises through 50 and 90 %. False alarms: the "
            "fraction of images of other classes that are called this one; a system that often calls it at random "
            "finds much. Bars are 95 % intervals."
        )
        pictures = [_picture(found, classes) for found in of_class]
        made.append(Section("Detection limit", text, tables=tables, pictures=pictures))
    if of_all:
        text = "The fraction of images of each class that is recognised, by what is true of the lens and of the image."
        pictures = [_picture(found, classes) for found in of_all]
        made.append(Section("By lens and image", text, tables=[_ends(of_all)], pictures=pictures))
    return made


def _picture(found: dict[str, Any], classes: Sequence[str]) -> Picture:
    numbers = "; ".join(
        f"{row['median']:.4g}: "
        + ", ".join(f"{name} {rate['value']:.3f}" for name, rate in row["recall"].items() if rate)
        for row in found["bins"]
    )
    alt = f"Recall by {found['parameter']}: {numbers}."
    first, last = (f"{row['median']:.3g}: {_rates(row)}" for row in (found["bins"][0], found["bins"][-1]))
    return Picture(figures.to_png(charts.stratum(found, classes)), alt, f"Recall at {first}; at {last}.")


def _ends(strata: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for found in strata:
        name = f"{found['parameter']}, {found['unit']}" if found["unit"] else found["parameter"]
        cells = []
        for row in (found["bins"][0], found["bins"][-1]):
            auc = "-" if row["auc"] is None else f"{row['auc']['value']:.4f}"
            cells += [f"{row['low']:.3g} to {row['high']:.3g}", _rates(row), auc]
        rows.append([name, *cells])
    return Table(["by", "lowest bin", "recall", "AUC", "highest bin", "recall", "AUC"], rows)


def _rates(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {rate['value']:.3f}" for name, rate in row["recall"].items() if rate)


def _limit(limit: dict[str, Any], found: dict[str, Any]) -> str:
    smallest, largest = found["bins"][0]["median"], found["bins"][-1]["median"]
    low, high = limit["ci95"]
    if limit["value"] is None:
        return f"below {smallest:.3g}" if limit["reached"] == "below the smallest" else f"above {largest:.3g}"
    ends = f"{'< ' + format(smallest, '.3g') if low is None else format(low, '.3g')}"
    return f"{limit['value']:.3g} [{ends}, {'> ' + format(largest, '.3g') if high is None else format(high, '.3g')}]"
