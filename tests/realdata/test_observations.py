"""Observations of PyAutoLens, SLACS, Euclid and HST are read, and the fit of a simulated one returns the truth."""

import pytest
from commandline import darklens, rows_of

from darklens.errors import InputError
from darklens.scene.observation_files import Inputs, read_observation
from darklens.scene.observation_paths import find_observations

pytestmark = pytest.mark.realdata


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imaging", ()),
        ("imaging_in_adus", ("exposure_time_map.fits not used",)),
        ("imaging_noise_map_wht", ("taken as an inverse variance (weight)",)),
        ("imaging_with_even_psf", ("22 x 22 pixels, origin at the centre of the array", "its sum is 12.18")),
        ("imaging_with_off_centre_psf", ("its centroid is (1.00, 1.00) pixels from its centre",)),
    ],
)
def test_what_pyautolens_prepares_is_understood(realdata, name, words):
    path = str(realdata / "autolens" / "preprocess" / name)
    with pytest.raises(InputError, match="states no pixel scale"):
        read_observation(path)
    changes = read_observation(path, Inputs(pixel_scale=0.1)).changes
    assert len(changes) == len(words) and all(any(word in change for change in changes) for word in words)


def test_all_slacs_lenses_are_read(realdata):
    labels = find_observations([realdata / "slacs"])
    assert len(labels) == 40
    for label in labels:
        observation = read_observation(label, Inputs(pixel_scale=0.05, half_width=3.0))
        assert observation.image.shape == (121, 121) and observation.used.mean() > 0.5
        assert observation.psf.kernel.shape == (15, 15)


def test_a_band_of_euclid_has_its_noise_and_psf(realdata):
    (path,) = (str(p) for p in realdata.glob("euclid-q1/*/1*.fits"))
    with pytest.raises(InputError, match="several images"):
        read_observation(path)
    observation = read_observation(path, Inputs(image="VIS_BGSUB"))
    assert observation.pixel_scale == pytest.approx(0.1) and observation.psf.kernel.shape == (21, 21)
    assert (~observation.used).sum() == 51 and any("0.9555" in change for change in observation.changes)


def test_hst_images_of_lenstronomy_have_noise_from_background_and_exposure(realdata):
    folder = realdata / "hst-lenses"
    psf = str(folder / "psf_lens_system1_F390W.h5")
    observation = read_observation(str(folder / "image_lens_system1_F390W.h5"), Inputs(psf=psf))
    assert observation.pixel_scale == pytest.approx(0.04, rel=1e-4)
    assert observation.changes == (
        "noise of background (rms 0.00173) and photons (image_lens_system1_F390W.h5[exposure_time])",
    )


def test_the_command_returns_the_einstein_radius_of_a_simulated_lens(realdata, tmp_path):
    lens = realdata / "autolens" / "no_lens_light" / "mass_sie__source_sersic"
    words = ["--pixel-scale", 0.1, "--flip-rows", "--model", "sie-shear", "--out", tmp_path / "fits.csv"]
    assert darklens("fit", lens, *words) == 0
    (row,) = rows_of(tmp_path / "fits.csv")
    assert float(row["theta_E"]) == pytest.approx(1.6, rel=0.005) and row["converged"] == "yes"
    assert float(row["q"]) == pytest.approx(0.9, abs=0.03) and abs(float(row["gamma2"])) == pytest.approx(
        0.05, abs=0.01
    )
    assert float(row["gamma1"]) == pytest.approx(0.05, abs=0.01)
