"""The pixel scale of files that state none: that of a data set, that of the model, or an error with the options."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from darklens import populations
from darklens.data.assumed_scale import assumed_scale
from darklens.data.importers import import_folder
from darklens.data.prepare import prepare
from darklens.data.readers import read_image
from darklens.errors import InputError
from darklens.populations.instruments import INSTRUMENTS

UNKNOWN = (
    r"states no pixel scale, and its 64 x 64 pixels may be of 0\.101 arcsec \(DeepLense Model II, Euclid\) or 0\.08 "
    r"arcsec \(DeepLense Model III, HST\); give --pixel-scale\."
)
NAMED = {
    "Model_II": 0.101,
    "model2_train": 0.101,
    "Model III": 0.08,
    "model-3": 0.08,
    "Model_IV": 0.101,
    "my-Euclid.d": 0.101,
}


def image(n=64):
    """Return an image as DeepLenseSim stores it: divided by its maximum; from 0 to 1 if n is 150."""
    values = np.exp(np.random.default_rng(0).normal(size=(n, n)))
    values -= values.min() if n == 150 else 0
    return values / values.max()


def class_folders(at, n=64):
    for name in ("no_sub", "cdm", "axion"):
        (at / name).mkdir(parents=True)
        content = np.empty(2, dtype=object)
        content[:] = image(n), 1e-23
        np.save(at / name / "1.npy", content if name == "axion" else image(n), allow_pickle=name == "axion")
    return at


def as_npz(at, n=64):
    np.savez(at.with_suffix(".npz"), images=np.stack([image(n)] * 3), labels=[0, 1, 2])
    return at.with_suffix(".npz")


def as_hdf5(at, n=64):
    with h5py.File(at.with_suffix(".h5"), "w") as file:
        file["images"], file["labels"] = np.stack([image(n)] * 3), [0, 1, 2]
    return at.with_suffix(".h5")


@pytest.mark.parametrize("make", [class_folders, as_npz, as_hdf5])
class TestImports:
    @pytest.mark.parametrize(("name", "scale"), NAMED.items())
    def test_a_name_decides_and_a_warning_says_so(self, make, name, scale, tmp_path):
        report = import_folder(make(tmp_path / name), tmp_path / "store")
        assert report.store.index.pixel_scale == scale and report.problems == []
        (warning,) = report.warnings
        assert warning.startswith(f"3 of the images: pixel scale of {scale} arcsec assumed (DeepLense Model ")
        assert warning.endswith("--pixel-scale gives another.")

    def test_two_equally_likely_scales_are_an_error_and_nothing_is_written(self, make, tmp_path):
        source = make(tmp_path / "source")
        with pytest.raises(InputError, match=UNKNOWN):
            import_folder(source, tmp_path / "store")
        assert not (tmp_path / "store").exists()
        assert import_folder(source, tmp_path / "store", pixel_scale=0.1).store.index.pixel_scale == 0.1

    @pytest.mark.parametrize(("name", "n"), [("Model_I", 150), ("source", 150), ("Model_II", 150), ("source", 32)])
    def test_other_sizes_have_the_default(self, make, name, n, tmp_path):
        assert import_folder(make(tmp_path / name, n), tmp_path / "store").store.index.pixel_scale == 0.05


@pytest.mark.parametrize("change", [lambda pixels: pixels * 2, lambda pixels: pixels - pixels.min(), np.log])
def test_images_of_that_size_that_are_not_scaled_like_deeplense_have_the_default(change, tmp_path):
    (tmp_path / "s" / "no").mkdir(parents=True)
    np.save(tmp_path / "s" / "no" / "1.npy", change(image()))
    assert import_folder(tmp_path / "s", tmp_path / "store").store.index.pixel_scale == 0.05
    np.save(tmp_path / "s" / "no" / "1.npy", image())
    with pytest.raises(InputError, match=UNKNOWN):
        import_folder(tmp_path / "s", tmp_path / "other")
    np.save(tmp_path / "s" / "no" / "1.npy", change(image()))
    (tmp_path / "s" / "no").rename(tmp_path / "s" / "nosub")
    with pytest.raises(InputError, match=UNKNOWN):
        import_folder(tmp_path / "s", tmp_path / "other")


def test_images_of_two_sets_are_not_imported_into_one_store(tmp_path):
    for name in ("Model_II", "Model_III"):
        class_folders(tmp_path / "s" / name)
    lines = [f"{name}/cdm/1.npy,1" for name in ("Model_II", "Model_III")]
    (tmp_path / "s" / "index.csv").write_text("\n".join(lines))
    (problem,) = import_folder(tmp_path / "s", tmp_path / "store").problems
    assert "has pixels of 0.08 arcsec, the store 0.101" in problem


@pytest.mark.parametrize(("name", "scale"), NAMED.items())
def test_a_classified_image_has_the_scale_of_its_name(name, scale, tmp_path, monkeypatch):
    monkeypatch.setattr("darklens.data.prepare.find_lens", lambda *_: (0.0, 0.0))  # the search takes seconds
    path = class_folders(tmp_path / name) / "axion" / "1.npy"
    changes = prepare(read_image(path), n_pixels=100, pixel_scale=0.05, path=path).changes
    assert changes[0].startswith(f"pixel scale of {scale} arcsec assumed (DeepLense Model ")
    assert changes[-1] == f"resampled from {scale} to 0.05 arcsec per pixel"


def test_a_classified_image_without_a_name_is_an_error_unless_it_has_the_size_of_the_model(tmp_path):
    path = class_folders(tmp_path / "x") / "cdm" / "1.npy"
    expected = UNKNOWN.replace("; give", r" or 0\.05 arcsec \(that of the model\); give")
    with pytest.raises(InputError, match=expected):
        prepare(read_image(path), n_pixels=100, pixel_scale=0.05, path=path)
    prepared = prepare(read_image(path), n_pixels=64, pixel_scale=0.04, path=path)
    assert prepared.changes == ("pixel scale of 0.04 arcsec assumed",)
    with pytest.raises(
        InputError, match=r"0\.05 arcsec \(DeepLense Common Test\) or 0\.1 arcsec \(that of the model\)"
    ):
        assumed_scale(image(150), path, default=0.1, n_pixels=75, name="x")


@pytest.mark.parametrize("name", populations.names())
def test_simulated_images_in_a_folder_of_their_name_have_their_scale(name):
    population = populations.get(name)
    field = population.field
    pixels = np.zeros((field.n_pixels, field.n_pixels))
    assert assumed_scale(pixels, Path(name) / "no" / "1.npy", default=0.05, name="x")[0] == field.pixel_scale


def test_scales_of_instruments_are_those_of_their_records():
    for words, record in (("euclid", "euclid-vis"), ("hst", "hst-wfc3-f160w")):
        assert assumed_scale(image(), Path(words), default=1.0, name="x")[0] == INSTRUMENTS[record].pixel_scale
