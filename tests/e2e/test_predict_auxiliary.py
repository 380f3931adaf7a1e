"""`darklens predict` with a PSF, a noise map and a mask: used, or a reason for the verdict `unknown`; never ignored."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import darklens, rows_of

from darklens.data.noise_estimate import noise_variance
from darklens.populations.population import get
from darklens.populations.psf_models import GaussianPSF, ImagePSF
from darklens.predict.auxiliary import psf_difference

EXAMPLE = Path(__file__).parents[2] / "examples" / "common-test-i" / "no"


@pytest.fixture(scope="module")
def image():
    return np.load(next(EXAMPLE.glob("*.npy")))[0]


@pytest.fixture
def predicted(image, tmp_path):
    """Return a function that classifies the example with some files and returns its row."""
    np.save(tmp_path / "lens.npy", image)

    def run(code=0, **arrays):
        words = []
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
            words += [f"--{name}", tmp_path / f"{name}.npy"]
        assert darklens("predict", tmp_path / "lens.npy", *words, "--out", tmp_path / "p.csv") == code
        (row,) = rows_of(tmp_path / "p.csv")
        return row

    return run


def gaussian(sigma, n=15):
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    kernel = np.exp(-0.5 * (x**2 + y**2) * (0.05 / sigma) ** 2)
    return kernel / kernel.sum()


def test_inputs_that_agree_with_the_model_change_nothing(predicted, image):
    mask = np.zeros(image.shape)
    mask[:5, :5] = 1
    noise = noise_variance(torch.from_numpy(image)[None, None].double())[0, 0].sqrt().numpy()
    alone = predicted()
    row = predicted(**{"psf": gaussian(get("common-test-i").psf.sigma), "noise-map": noise, "mask": mask})
    assert row["verdict"] == alone["verdict"] == "no" and row["reason"] == ""
    assert "25 pixels excluded by mask.npy" in row["changes"] and "25 NaN pixels masked" in row["changes"]


def test_inputs_that_differ_are_reasons_not_to_trust_the_class(predicted, image):
    row = predicted(**{"psf": gaussian(0.1), "noise-map": np.full(image.shape, 1.0)})
    assert row["verdict"] == "unknown" and row["set"] == "no|sphere|vort"
    assert "times the noise in the image, which the model uses" in row["reason"]
    assert "the PSF differs by" in row["reason"] and "from that of the training images" in row["reason"]


def test_a_map_of_another_shape_is_a_bad_input(predicted):
    row = predicted(code=3, mask=np.zeros((10, 10)))
    assert row["status"] == "error"
    assert "mask.npy has 10 x 10 pixels, the image 150 x 150" in row["message"]


def test_an_unreadable_file_is_told_before_any_work(predicted, tmp_path, capsys):
    np.save(tmp_path / "lens.npy", np.eye(150))
    assert darklens("predict", tmp_path / "lens.npy", "--psf", tmp_path / "x.fits", "--out", tmp_path / "p.csv") == 2
    assert "no such file" in capsys.readouterr().err


def test_the_width_is_free_where_fits_determine_it():
    kernel = gaussian(0.1)
    assert psf_difference(kernel, GaussianPSF(sigma=0.087), 0.05) > 0.1
    assert psf_difference(kernel, GaussianPSF(sigma=0.087, known=False), 0.05) < 0.02
    assert psf_difference(gaussian(0.087), GaussianPSF(sigma=0.087), 0.05) < 1e-6


def test_a_psf_is_compared_with_the_image_of_the_population():
    values = gaussian(0.087).astype("<f4")
    psf = ImagePSF(values=base64.b64encode(values.tobytes()).decode(), shape=values.shape)
    assert psf_difference(gaussian(0.087), psf, 0.05) < 1e-6
    assert psf_difference(np.pad(gaussian(0.087), 4), psf, 0.05) < 1e-6  # zeros around it change nothing
    assert psf_difference(gaussian(0.12), psf, 0.05) > 0.3
    assert psf_difference(np.roll(gaussian(0.087), 1, 0), psf, 0.05) > 0.1
