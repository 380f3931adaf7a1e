"""Tables of predictions: names of files that are no UTF-8, cells like formulas, and positions in the original image."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from archives import PIXELS, rings, small_bundle
from astropy.io import fits

from darklens.data.prepare import Prepared
from darklens.files import csv_line, printable, write_text
from darklens.predict import Auxiliary, Row, find_images, predict, predict_table, problems_in, to_csv
from darklens.predict.block_worker import quoted, unquoted
from darklens.predict.rows import _in_original
from darklens.training.trials import Trial, write_table

LATIN = os.fsdecode(b"caf\xe9.npy")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as stream:  # strict, as pandas reads
        return list(csv.DictReader(stream))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four files in a folder whose name is not UTF-8: two good ones, and two bad ones, of which one has such a name."""
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, image in zip(("a.npy", LATIN), rings(2), strict=True):
        np.save(name, image[0])
    Path("bad.npy").write_text("x")
    Path(os.fsdecode(b"=\xe9.npy")).write_text("x")
    small_bundle().save(tmp_path / "model")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_one_name_that_is_not_utf8_does_not_kill_a_batch(folder, workers):
    files = [str(path) for path in find_images([os.curdir])]
    table = folder / os.fsdecode(b"t\xe9.csv")
    summary = predict_table(folder.parent / "model", files, table, workers=workers)
    assert summary.files == 4 and summary.bad == 2
    rows = rows_of(table)
    assert sorted(row["path"] for row in rows) == sorted(["a.npy", "bad.npy", r"caf\xe9.npy", r"'=\xe9.npy"])
    assert sum(row["status"] == "ok" for row in rows) == 2
    assert sum(r"=\xe9.npy: is not an npy" in problem for problem in problems_in(table)) == 1


def test_rows_of_python_keep_the_name_and_their_table_is_utf8(folder):
    rows = predict(small_bundle(), find_images([os.curdir]))
    assert LATIN in [row.path for row in rows]
    write_text(folder / "t.csv", to_csv(rows, ["no", "sphere", "vort"]))
    assert len(rows_of(folder / "t.csv")) == 4


def test_maps_beside_an_image_that_no_option_names_are_in_changes(tmp_path):
    for name in ("image", "noise", "psf", "mask"):
        fits.writeto(tmp_path / f"{name}.fits", rings(1)[0, 0] if name == "image" else np.zeros((PIXELS, PIXELS)))
    (row,) = predict(small_bundle(), find_images([tmp_path]), auxiliary=Auxiliary.of(mask=str(tmp_path / "mask.fits")))
    assert "noise.fits not used: no --noise-map" in row.changes and "psf.fits not used: no --psf" in row.changes
    assert not any("mask.fits not used" in change for change in row.changes)


@pytest.mark.parametrize("path", ["/a b/c", "/caf\udce9/100%41", "/é/\udcff"])
def test_paths_survive_json(path):
    assert unquoted(quoted(Path(path))) == Path(path)
    quoted(Path(path)).encode()


FORMULAS = ["=1+1", "+a", "-a.npy", "@sum(a)", "\t=1", "\r=1", "＝1", "=1"]
PLAIN = ["-0.5", "+1e-3", "-inf", "nan", "a=b", "", "0", "1|2"]


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("cell", ["path", "message", "changes", "label", "setting", "problem"])
def test_no_cell_of_a_table_begins_like_a_formula(tmp_path, cell, text):
    if cell in ("setting", "problem"):
        trial = Trial(0, "refused", None, 1, 1.0, {"a": text if cell == "setting" else 1}, text)
        write_table(tmp_path / "t.csv", [trial], "val_loss")
        name = "a" if cell == "setting" else cell
    else:
        row = Row(text if cell == "path" else "x.npy", [0.5, 0.5], "", {"changes": text if cell == "changes" else ""})
        if cell == "message":
            row = Row("x.npy", message=text)
        write_text(tmp_path / "t.csv", to_csv([row], ["no", "vort"], {"label": [text]}))
        name = cell
    assert rows_of(tmp_path / "t.csv")[0][name] == f"'{text}"


@pytest.mark.parametrize("text", PLAIN)
def test_numbers_and_other_cells_stay_as_they_are(text):
    assert next(csv.reader([csv_line([text, "b"])]))[0] == text


def test_printable_text_is_utf8():
    assert printable("é \udce9 \ud800") == "é \\xe9 \\ud800"


def test_positions_of_a_table_are_relative_to_the_centre_of_the_original_image():
    columns = {
        "centre_x": "0.1",
        "centre_y": "-0.2",
        "line_x": "1",
        "point_y": "0.5",
        "theta_E": "1.2",
        "line_length": "1",
    }
    moved = _in_original(columns, (2.0, -0.025))
    assert moved == columns | {"centre_x": "2.1", "centre_y": "-0.225", "line_x": "3", "point_y": "0.475"}
    assert _in_original(columns, (0.0, 0.0)) == columns


def test_the_offset_of_the_cut_out_has_columns_and_reaches_the_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = np.pad(rings(1)[0, 0], ((0, 1), (0, 0)), mode="edge")
    np.save("odd.npy", image)
    np.save("even.npy", rings(1)[0, 0])
    batches = []
    paths = [Path("odd.npy"), Path("even.npy")]
    rows = predict(small_bundle(), paths, on_batch=lambda *batch: batches.append(batch))
    assert [(row.findings["offset_x"], row.findings["offset_y"]) for row in rows] == [("0", "-0.025"), ("0", "0")]
    prepared: list[Prepared] = batches[0][2]
    assert [each.offset for each in prepared] == [(0.0, -0.025), (0.0, 0.0)]
    assert prepared[0].pixels.shape == (PIXELS, PIXELS)
