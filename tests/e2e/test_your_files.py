"""Files of every kind through the command line, good ones and broken ones together."""

import io
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from commandline import darklens, rows_of

from darklens.bundle import Bundle
from darklens.predict import predict

FINE = ["field.n_pixels=80", "field.pixel_scale=0.04", "--n-per-class", 1]  # as wide as the model's images
RESAMPLED = "resampled from 0.04 to 0.05 arcsec per pixel"


def complaints(capsys):
    """Return the lines on files; another line says that nothing checks the classes of the network."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("darklens: ") and "no fit checks its classes" not in line]


def by_name(path):
    return {Path(row["path"]).name: row for row in rows_of(path)}


@pytest.fixture
def run(tiny):
    return tiny / "resnet_simple"


@pytest.fixture
def folder(tmp_path):
    """One lens of 0.04 arcsec per pixel in three formats, one that fits the model, and two bad files."""
    assert darklens("simulate", "common-test-i", "--out", tmp_path / "d", "--format", "deeplense", *FINE) == 0
    lens = np.load(tmp_path / "d" / "vort" / "1.npy").reshape(80, 80)
    folder = tmp_path / "files"
    folder.mkdir()
    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.04 / 3600, "CDELT2": 0.04 / 3600}
    science = fits.ImageHDU(lens.astype(np.float32), fits.Header(header), name="SCI")
    fits.HDUList([fits.PrimaryHDU(), science]).writeto(folder / "a.fits.gz")
    with h5py.File(folder / "b.h5", "w") as file:
        file["image_data"], file["exposure_time"] = lens, np.ones_like(lens)
        file["transform_pix2angle"] = np.diag([-0.04, 0.04])
    np.savez(folder / "c.npz", image=lens, pixel_scale=0.04)
    np.save(folder / "d.npy", lens[8:72, 8:72])
    (folder / "e.npy").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "f.fits").symlink_to("f.fits")
    return folder


def test_every_kind_of_file_gets_its_row(run, folder, tmp_path, capsys, monkeypatch):
    assert darklens("predict", run, folder, "--out", tmp_path / "p.csv") == 3
    rows = by_name(tmp_path / "p.csv")
    assert list(rows) == ["a.fits.gz", "b.h5", "c.npz", "d.npy", "e.npy", "f.fits"]
    assert list(rows["d.npy"])[6:8] == ["message", "changes"]
    probabilities = [float(rows[name]["p_vort"]) for name in ("a.fits.gz", "b.h5", "c.npz")]
    assert probabilities == pytest.approx([probabilities[0]] * 3, abs=1e-6)
    assert all(rows[name]["changes"].endswith(RESAMPLED) for name in ("a.fits.gz", "b.h5", "c.npz"))
    assert rows["d.npy"]["changes"] == "pixel scale of 0.05 arcsec assumed" and rows["d.npy"]["status"] == "ok"
    assert "is a PNG image" in rows["e.npy"]["message"] and "symbolic links" in rows["f.fits"]["message"]
    assert len(complaints(capsys)) == 2

    (tmp_path / "list.txt").write_text(f"{folder}/a.fits.gz\n{folder}/c.npz\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}/a.fits.gz\n{folder}/c.npz\n"))
    for i, words in enumerate((["@" + str(tmp_path / "list.txt")], [f"{folder}/[ac].*"], ["-"])):
        assert darklens("predict", run, *words, "--out", tmp_path / f"{i}.csv") == 0
        found = by_name(tmp_path / f"{i}.csv")
        assert list(found) == ["a.fits.gz", "c.npz"]
        for name, row in found.items():
            assert float(row["p_vort"]) == pytest.approx(float(rows[name]["p_vort"]), abs=1e-6)


def test_the_given_scale_and_image_go_before_what_the_file_says(run, folder, tmp_path):
    words = ["--pixel-scale", 0.05, "--image", "exposure_time"]
    assert darklens("predict", run, folder / "b.h5", *words, "--out", tmp_path / "p.csv") == 3
    assert "all pixels have the same value" in by_name(tmp_path / "p.csv")["b.h5"]["message"]
    assert darklens("predict", run, folder / "b.h5", *words[:2], "--out", tmp_path / "p.csv") == 0
    assert by_name(tmp_path / "p.csv")["b.h5"]["changes"].startswith("cropped from 80 x 80 to 64 x 64 pixels")


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """A file of five megabytes that unpacks to more than a gigabyte."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.npz"
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open("image.npy", "w") as stream:
        for _ in range(101):
            stream.write(bytes(10_000_000))
    return path


@pytest.fixture
def hostile(tmp_path, bomb):
    """Files that want to be executed, to fill memory or to never end, and one good one, in a folder for a class."""
    folder = tmp_path / "hostile" / "no"
    folder.mkdir(parents=True)
    array = np.empty(1, dtype=object)
    array[0] = Touch(tmp_path / "owned")
    np.save(folder / "a_pickle.npy", array, allow_pickle=True)
    (folder / "b_bomb.npz").write_bytes(bomb.read_bytes())
    with (folder / "c_sparse.npy").open("wb") as stream:
        stream.truncate(10_000_000_000)
    fits.PrimaryHDU(np.ones((64, 64))).writeto(folder / "d_negative.fits")
    content = (folder / "d_negative.fits").read_bytes()
    axes = b"NAXIS   =                    2"
    (folder / "d_negative.fits").write_bytes(content.replace(axes, axes.replace(b" 2", b"-2")))
    (folder / "e_picture.npy").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    (folder / "f_loop.npy").symlink_to(folder / "f_loop.npy")
    os.mkfifo(folder / "g_pipe.npy")
    (folder / "h.npy").mkdir()
    (folder / "h.npy" / "back").symlink_to(folder)
    np.save(folder / "z_good.npy", np.random.default_rng(0).normal(size=(64, 64)))
    return folder.parent


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("command", ["predict", "import"])
def test_hostile_files_get_one_line_each_and_harm_nothing(run, hostile, tmp_path, capsys, command):
    out = tmp_path / ("p.csv" if command == "predict" else "store")
    words = ["predict", run, hostile] if command == "predict" else ["import", hostile]
    assert darklens(*words, "--out", out) == 3
    lines = complaints(capsys)
    named = [next(n for n in "abcdefg" if f"/{n}_" in line) for line in lines]
    assert named == list("abcdefg")
    assert not (tmp_path / "owned").exists()
    if command == "predict":
        assert [row["status"] for row in rows_of(out)] == ["error"] * 7 + ["ok"]
    else:
        assert darklens("inspect", out, "--verify") == 0 and "no: 1" in capsys.readouterr().out


def test_python_gets_the_changes_too(run, folder):
    rows = predict(Bundle.load(run), [folder / "a.fits.gz", folder / "e.npy"])
    assert rows[0].changes[-1] == RESAMPLED and rows[1].changes == () and rows[1].message
