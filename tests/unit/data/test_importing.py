"""Labelled images of all file types give the same store."""

import os

import h5py
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image as pillow

from darklens.data import importers
from darklens.data.importers import IMPORTERS, import_folder, list_entries
from darklens.errors import InputError
from darklens.files import locked

N = 8
IMAGES = np.random.default_rng(2).integers(0, 256, (9, N, N)).astype(np.uint8)
LABELS = np.repeat([0, 1, 2], 3)
NAMES = np.array(["no", "sphere", "vort"])[LABELS]
SKY = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.04 / 3600, "CDELT2": 0.04 / 3600}


def class_folders(folder, write):
    for i, (name, image) in enumerate(zip(NAMES, IMAGES, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write(folder / name, f"{i}", image)
    return folder


def as_hdf5(path, labels=LABELS, images=IMAGES, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **options)
        file["labels"] = labels
        file["images"].attrs["pixel_scale"] = 0.04
    return path


def as_npz(path, labels=LABELS, images=IMAGES, **others):
    np.savez_compressed(path, images=images, labels=labels, **others)
    return path


def npy_pair(folder):
    folder.mkdir()
    np.save(folder / "images.npy", IMAGES[:, None])
    np.save(folder / "labels.npy", NAMES)
    return folder


SOURCES = {
    "npy": lambda at: class_folders(at, lambda d, n, image: np.save(d / f"{n}.npy", image)),
    "FITS": lambda at: class_folders(at, lambda d, n, i: fits.PrimaryHDU(i, fits.Header(SKY)).writeto(d / f"{n}.fits")),
    "PNG": lambda at: class_folders(at, lambda d, n, image: pillow.fromarray(image[::-1]).save(d / f"{n}.png")),
    "HDF5 files": lambda at: class_folders(at, lambda d, n, i: h5py.File(d / f"{n}.h5", "w").update({"a": i})),
    "npz": lambda at: as_npz(at.with_suffix(".npz")),
    "npz of names": lambda at: as_npz(at.with_suffix(".npz"), NAMES, IMAGES[:, None], pixel_scale=0.04),
    "npz of floats": lambda at: as_npz(at.with_suffix(".npz"), LABELS.astype(float)),
    "HDF5": lambda at: as_hdf5(at.with_suffix(".h5")),
    "HDF5 in chunks": lambda at: as_hdf5(at.with_suffix(".h5"), chunks=(2, N, N), compression="gzip"),
    "HDF5 of names": lambda at: as_hdf5(at.with_suffix(".h5"), NAMES.astype(object)),
    "npy pair": lambda at: npy_pair(at),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_all_sources_give_the_same_store(tmp_path, kind):
    report = import_folder(SOURCES[kind](tmp_path / "source"), tmp_path / "store")
    store = report.store
    assert report.problems == [] and store.verify() == []
    assert store.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(store.images(range(9))[:, 0], IMAGES)
    has_scale = kind in ("FITS", "HDF5", "HDF5 in chunks", "HDF5 of names", "npz of names")
    assert store.index.pixel_scale == pytest.approx(0.04 if has_scale else 0.05)
    assert len(report.warnings) == (kind == "PNG") + (not has_scale)
    assert any("pixel scale of 0.05 arcsec assumed" in warning for warning in report.warnings) != has_scale


def test_an_index_names_files_of_any_kind_and_classes(tmp_path):
    source = SOURCES["FITS"](tmp_path / "d")
    np.save(source / "loose.npy", IMAGES[0])
    (source / "index.csv").write_text("file,label\nvort/8.fits,vort\nloose.npy,0\nno/0.fits,no_sub\n")
    assert import_folder(source, tmp_path / "store").store.labels.tolist() == [2, 0, 0]


def test_bad_images_are_listed_and_the_others_imported(tmp_path):
    images = IMAGES.astype(float)
    images[2, 3, 3], images[5] = np.nan, 7.0
    for source in (as_npz(tmp_path / "a.npz", images=images), as_hdf5(tmp_path / "a.h5", images=images)):
        report = import_folder(source, tmp_path / f"{source.suffix}-store")
        assert len(report.store) == 7 and report.store.verify() == []
        assert report.problems == [
            f"{source}, image 2: 1 pixels are NaN or infinite; mask or fill them first.",
            f"{source}, image 5: all pixels have the same value, so there is nothing to classify.",
        ]
    folder = SOURCES["FITS"](tmp_path / "d")
    fits.PrimaryHDU(IMAGES[0], fits.Header({**SKY, "CDELT1": -1e-4, "CDELT2": 1e-4})).writeto(folder / "no" / "x.fits")
    (folder / "no" / "y.npy").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "vort" / "z.npy").symlink_to("z.npy")
    os.mkfifo(folder / "vort" / "pipe.npy")
    report = import_folder(folder, tmp_path / "store")
    assert len(report.store) == 9 and report.store.verify() == []
    assert [problem.split(": ")[1].split(",")[0][:24] for problem in report.problems] == [
        "has pixels of 0.36 arcse", "is a PNG image despite i", "is not a regular file; s", "cannot be read (too many",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda at: as_npz(at / "a.npz", LABELS + 1), "labels has '3'; labels are no, sphere, vort, or 0 to 2"),
        (lambda at: as_npz(at / "a.npz", np.repeat(["no", "x"], [8, 1])), "labels has 'x'"),
        (lambda at: as_hdf5(at / "a.h5", np.arange(9.0) - 1), "labels has '-1.0'"),
        (lambda at: as_npz(at / "a.npz", LABELS[:5]), "has 9 images and 5 labels"),
        (lambda at: as_npz(at / "a.npz", images=IMAGES[0]), "images has shape"),
        (lambda at: as_npz(at / "a.npz", images=IMAGES * 1j), "complex128 values"),
        (lambda at: as_npz(at / "a.npz", np.array([{}] * 9)), "labels holds object values"),
        (lambda at: as_hdf5(at / "a.h5", images=IMAGES[:0], labels=LABELS[:0]), "has 0 images"),
        (lambda at: as_npz(at / "a.npz", images=np.asfortranarray(IMAGES)), "Fortran"),
        (lambda at: at / "absent", "does not exist"),
        (lambda at: class_folders(at / "d", lambda d, n, i: np.save(d.parent / "no" / f"{n}.npy", i)), "nothing"),
    ],
)
def test_an_invalid_source_gives_one_sentence_and_writes_nothing(tmp_path, make, sentence):
    source = make(tmp_path)
    if sentence == "nothing":
        (source / "spiral").mkdir()
        np.save(source / "spiral" / "1.npy", IMAGES[0])
        sentence = "the folder 'spiral' has images but is not a class; the classes are no, sphere, vort"
    with pytest.raises(InputError) as caught:
        import_folder(source, tmp_path / "store")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_files_without_labels_give_one_sentence(tmp_path):
    np.savez(tmp_path / "a.npz", image=IMAGES[0])
    with h5py.File(tmp_path / "a.h5", "w") as file:  # as lenstronomy and dolphin write one lens
        file["image_data"] = IMAGES[0]
    np.save(tmp_path / "a.npy", IMAGES)
    for name, sentence in {
        "a.npz": "has no array 'images' (it has image)",
        "a.h5": "(it has image_data)",
        "a.npy": "no labels",
    }.items():
        with pytest.raises(InputError) as caught:
            list_entries(IMPORTERS["deeplense"], tmp_path / name)
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\0a,0\n", b"a" * 200_000 + b",0\n", b"a\0b,0\n", b"x,y,z\n", b"no/1.npy\n"]
)
def test_an_invalid_index_gives_one_sentence(tmp_path, content):
    source = SOURCES["npy"](tmp_path / "d")
    (source / "index.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"index\.csv"):
        list_entries(IMPORTERS["deeplense"], source)
    (source / "index.csv").unlink()
    os.mkfifo(source / "index.csv")
    with pytest.raises(InputError, match="not a regular file"):
        list_entries(IMPORTERS["deeplense"], source)


def test_an_interrupted_import_starts_again(tmp_path, monkeypatch):
    source = SOURCES["npy"](tmp_path / "source")
    monkeypatch.setattr(importers, "_SHARD_SIZE", 2)

    def stop(n, calls=[]):  # noqa: B006
        calls.append(n)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_folder(source, tmp_path / "store", advance=stop)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["shards"]
    monkeypatch.setattr(importers, "_SHARD_SIZE", 256)
    report = import_folder(source, tmp_path / "store")
    assert len(report.store) == 9 and report.store.verify() == []
    with pytest.raises(InputError, match="already exists"):
        import_folder(source, tmp_path / "store")
    (tmp_path / "mine" / "shards").mkdir(parents=True)
    (tmp_path / "mine" / "shards" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        import_folder(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "shards" / "thesis.txt").exists()


def test_two_processes_do_not_import_into_one_store(tmp_path):
    source = SOURCES["npy"](tmp_path / "source")
    (tmp_path / "store").mkdir()
    with locked(tmp_path / "store"), pytest.raises(InputError, match=r"Another process is writing to .*/store; wait"):
        import_folder(source, tmp_path / "store")
    assert len(import_folder(source, tmp_path / "store").store) == 9
